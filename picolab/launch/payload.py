"""How a cell's function and its result travel between the kernel and a rank.

A function defined in a cell, a script or a test has no module that a rank could import, so it
travels by value (cloudpickle), closures and the notebook globals it uses included. Its source
travels along, so that a traceback in the rank can show the cell's line. Results come back with
tensors moved to the CPU."""

import importlib
import io
import linecache
import os
import pickle
import sys
import types
from dataclasses import dataclass
from pathlib import Path

import cloudpickle


@dataclass
class Payload:
    """What a rank is given to call."""

    fn: object
    args: tuple
    kwargs: dict


def pack(fn, args: tuple, kwargs: dict) -> bytes:
    """Bytes of the payload. ValueError naming what cannot be sent."""
    module = sys.modules.get(getattr(fn, "__module__", None) or "")
    by_value = module is not None and not _importable(module)
    if by_value:
        cloudpickle.register_pickle_by_value(module)
    try:
        blob = _dumps(Payload(fn, args, kwargs))
        # Of the notebook's cells only those whose code is in it: others may hold anything.
        return blob + _dumps({n: t for n, t in _cell_sources().items() if n.encode() in blob})
    except Exception as error:
        raise ValueError(_what_cannot_travel(fn, args, kwargs, error)) from error
    finally:
        if by_value:
            cloudpickle.unregister_pickle_by_value(module)


def _dumps(value) -> bytes:
    buffer = io.BytesIO()
    _PayloadPickler(buffer, protocol=pickle.HIGHEST_PROTOCOL).dump(value)
    return buffer.getvalue()


class _PayloadPickler(cloudpickle.Pickler):
    """Sends modules of a class of their own by name, as it sends others.

    A function that mentions `dist` and anything called `config` would otherwise take the object
    `torch.distributed.config` along, which no pickle can carry.
    """

    def reducer_override(self, obj):
        if isinstance(obj, types.ModuleType) and sys.modules.get(obj.__name__) is obj:
            return importlib.import_module, (obj.__name__,)
        return super().reducer_override(obj)


def unpack(blob: bytes) -> Payload:
    file = io.BytesIO(blob)
    try:
        payload, sources = cloudpickle.load(file), cloudpickle.load(file)
    except (AttributeError, ImportError) as error:
        raise ValueError(
            "the function cannot be sent to the ranks: what it uses travels by its name, and a "
            f"rank does not have it ({error}). So it is with decorated functions (lru_cache) of a "
            "cell and with modules loaded by path: decorate or load inside the function"
        ) from None
    for name, text in sources.items():
        linecache.cache[name] = (len(text), None, text.splitlines(keepends=True), name)
    return payload


def pack_result(value) -> bytes:
    """A rank's return value. ValueError if it cannot be pickled."""
    buffer = io.BytesIO()
    try:
        _ResultPickler(buffer, protocol=pickle.HIGHEST_PROTOCOL).dump(value)
    except Exception as error:
        raise ValueError(
            f"what the function returned cannot be sent back from the rank: {error}. "
            "Return numbers, tensors, or lists and dictionaries of them"
        ) from error
    return buffer.getvalue()


def unpack_result(blob: bytes):
    return cloudpickle.loads(blob)


class _ResultPickler(cloudpickle.Pickler):
    """Moves tensors to the CPU on the way: the kernel may have no GPU, and must not keep a rank's
    memory alive.
    """

    def reducer_override(self, obj):
        torch = sys.modules.get("torch")
        if torch is not None and isinstance(obj, torch.Tensor) and obj.device.type != "cpu":
            return obj.detach().cpu().__reduce_ex__(pickle.HIGHEST_PROTOCOL)
        return super().reducer_override(obj)


def _importable(module) -> bool:
    """Can a rank import it? Installed packages and picolab: yes. A script, a cell, a test file:
    send it by value.
    """
    if module.__name__ == "__main__":
        return True  # cloudpickle sends what is in __main__ by value without being told
    file = getattr(module, "__file__", None)
    if file is None:
        return True
    path = Path(file).resolve()
    package = Path(__file__).resolve().parents[1]
    installed = {"site-packages", "dist-packages"} & set(path.parts)
    standard = Path(os.__file__).resolve().parent
    return bool(installed) or path.is_relative_to(package) or path.is_relative_to(standard)


def _cell_sources() -> dict[str, str]:
    """The cells of this notebook. Their lines live only in the kernel's linecache, without a
    modification time.
    """
    return {
        name: "".join(entry[2])
        for name, entry in list(linecache.cache.items())
        if len(entry) == 4 and entry[1] is None and not os.path.exists(name)
    }


def _what_cannot_travel(fn, args, kwargs, error) -> str:
    candidates = {"the function": fn}
    candidates |= {f"argument {i + 1}": value for i, value in enumerate(args)}
    candidates |= {f"argument {name!r}": value for name, value in kwargs.items()}
    culprit = "the call"
    for name, value in reversed(candidates.items()):
        try:
            _dumps(value)
        except Exception as why:
            culprit, error = name, why
    detail = ""
    if culprit == "the function":
        names = [n for n, v in _captured(fn).items() if not _travels(v)]
        if names:
            listed = ", ".join(repr(name) for name in sorted(names))
            detail = f" It uses {listed}, which cannot be pickled: create it inside the function."
    return f"{culprit} cannot be sent to the ranks ({type(error).__name__}: {error}).{detail}"


def _captured(fn) -> dict:
    """Globals and closure variables that the function uses."""
    code = getattr(fn, "__code__", None)
    if code is None:
        return {}
    names = {n: fn.__globals__[n] for n in code.co_names if n in fn.__globals__}
    for name, cell in zip(code.co_freevars, fn.__closure__ or ()):
        try:
            names[name] = cell.cell_contents
        except ValueError:
            continue
    return names


def _travels(value) -> bool:
    try:
        _dumps(value)
    except Exception:
        return False
    return True
