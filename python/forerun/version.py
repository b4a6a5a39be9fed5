"""Which version of the package this is."""


def package_version() -> str:
    """The installed version; "unknown" in a source tree that is not installed."""
    import importlib.metadata

    try:
        return importlib.metadata.version("forerun")
    except importlib.metadata.PackageNotFoundError:
        return "unknown"
