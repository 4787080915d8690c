"""What a kernel of the sweep does before its first cell."""

import gc
import sys

STARTUP = "from sdd_utils import kernel\nkernel.start(get_ipython())\ndel kernel\n"


def start(shell) -> None:
    """Collect no garbage while the notebook's imports run, and never look through what they made.

    They make half a million objects that stay; looking through them again and again is a fifth of their time.

    Args:
        shell: IPython's.
    """

    def imported(result) -> None:
        if "torch" in sys.modules:
            gc.freeze()
            gc.enable()
            shell.events.unregister("post_run_cell", imported)

    gc.disable()
    shell.events.register("post_run_cell", imported)
