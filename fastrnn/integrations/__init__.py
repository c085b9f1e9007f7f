"""What torch's tools and other libraries must know about this package's layers.

Tools of torch learn it once they are imported, with nothing to call. Adapters for other libraries are
modules of their own here, for users to import.
"""

from fastrnn.integrations import flops, fx, opacus


def install() -> None:
    """Registers everything that needs no import by the user."""
    flops.install()
    fx.install()
    opacus.install()
