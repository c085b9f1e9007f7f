"""Support for this package's layers in torch's tools and other libraries.

Importing fastrnn registers it with torch's tools and Opacus, once these are imported. Users import
torchrl's adapter themselves.
"""

from fastrnn.integrations import flops, fx, opacus


def install() -> None:
    """Registers everything that needs no import by the user."""
    flops.install()
    fx.install()
    opacus.install()
