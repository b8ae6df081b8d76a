"""The command that tells what runs here."""


def info(argv: list[str]) -> None:
    """Print versions and devices."""
    import platform
    from importlib.metadata import PackageNotFoundError, version

    import jax

    print(f"python {platform.python_version()} on {platform.platform()}")
    for package in (
        "forestgaps-jax",
        "jax",
        "jaxlib",
        "flax",
        "optax",
        "orbax-checkpoint",
        "numpy",
        "rasterio",
    ):
        try:
            print(f"{package} {version(package)}")
        except PackageNotFoundError:
            print(f"{package}: not installed")
    for device in jax.devices():
        print(f"device {device.id}: {device.platform} {device.device_kind}")
