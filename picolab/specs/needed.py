"""What to say where PyTorch cannot be imported: that it is missing, or what is wrong with it.

"Not installed" to somebody whose installation is broken, or who has a file called torch.py, sends
them the wrong way.
"""

import importlib.util


def torch_needed(who: str, error: ImportError) -> ImportError:
    """The error to raise instead of one that importing torch has raised."""
    found = None if error.name == "torch" else importlib.util.find_spec("torch")
    if found is None:
        return ImportError(
            f"{who} PyTorch, which is not installed here: pip install -e '.[torch]' in the checkout"
        )
    return ImportError(
        f"{who} PyTorch, which is at {found.origin} and cannot be imported: {error}; if that is a "
        "file of yours, give it another name, else install torch again"
    )
