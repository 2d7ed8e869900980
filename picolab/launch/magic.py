"""`%%ranks N`: the cell's body on N ranks.

    %%ranks 4
    x = torch.tensor([float(rank)])
    dist.all_reduce(x)
    x

Each line of output is labelled with its rank; if the last line is an expression, each rank prints
its value. The body sees the notebook's variables as they were when the cell started (a copy:
nothing comes back but what `-o NAME` stores), and besides them `rank`, `world_size`, `torch`,
`dist` (torch.distributed) and `pico`."""

import argparse
import ast
import linecache
import shlex
import subprocess

from picolab.launch.job import run
from picolab.launch.payload import _travels


def load(shell) -> None:
    """Register the magic in this IPython; a second time changes nothing."""
    shell.register_magic_function(ranks, magic_kind="cell", magic_name="ranks")


class _Parser(argparse.ArgumentParser):
    def error(self, message):
        raise ValueError(f"%%ranks: {message}. {self.format_usage().strip()}")


_parser = _Parser(prog="%%ranks", add_help=False)
_parser.add_argument("world_size", type=int, nargs="?", default=2, metavar="N")
_parser.add_argument("-o", "--output", metavar="NAME", help="store the RunResult in this variable")
_parser.add_argument("--backend", default="auto", choices=["auto", "gloo", "nccl"])
_parser.add_argument("--timeout", type=float, default=120)


def ranks(line: str, cell: str):
    """%%ranks N [-o NAME] [--backend B] [--timeout S]: run the cell's body on N ranks."""
    from IPython import get_ipython

    shell = get_ipython()
    # Names of variables may be given for N: `%%ranks WORLD_SIZE`.
    words = [str(shell.user_ns.get(word, word)) for word in shlex.split(line, comments=True)]
    try:
        options = _parser.parse_args(words)
        cell = shell.transform_cell(cell)  # `!ls` becomes a call
        tree = ast.parse(cell)
    except (ValueError, SyntaxError) as error:
        shell.showtraceback((type(error), error, None), exception_only=True)
        raise _Shown from None
    name = f"Cell In[{shell.execution_count}]"
    source = f"%%ranks {line}\n{cell}"
    linecache.cache[name] = (len(source), None, source.splitlines(keepends=True), name)
    used = {node.id for node in ast.walk(tree) if isinstance(node, ast.Name)}
    here = {key for key in used & shell.user_ns.keys() if not key.startswith("__")}
    namespace = {
        key: shell.user_ns[key] for key in here - {"get_ipython"} if _travels(shell.user_ns[key])
    }
    result = run(
        cell_on_rank,
        cell,
        name,
        namespace,
        world_size=options.world_size,
        backend=options.backend,
        timeout=options.timeout,
        name="ranks",
    )
    if options.output:
        shell.user_ns[options.output] = result


class _Shell:
    """What a cell's `!ls` asks for, in a rank. There are no magics."""

    def system(self, command: str) -> None:
        subprocess.run(command, shell=True)

    def getoutput(self, command: str) -> list[str]:
        run = subprocess.run(command, shell=True, stdout=subprocess.PIPE, text=True)
        return run.stdout.splitlines()

    def __getattr__(self, name: str):
        raise ValueError(f"a rank has no notebook, and so no {name}; do it in a cell of its own")


class _Shown(Exception):
    """The error has been shown already."""

    def _render_traceback_(self) -> list[str]:
        return []


def cell_on_rank(cell: str, name: str, namespace: dict):
    """In the rank: execute the body, print and return the value of its last expression."""
    import sys

    import torch
    import torch.distributed as dist

    tree = ast.parse("\n" + cell, filename=name)  # one line down, where `%%ranks` stands
    last = tree.body.pop() if tree.body and isinstance(tree.body[-1], ast.Expr) else None
    names = {
        "__name__": "__main__",
        "torch": torch,
        "dist": dist,
        "pico": sys.modules["picolab"],
        "get_ipython": _Shell,
        **namespace,
        "rank": dist.get_rank(),
        "world_size": dist.get_world_size(),
    }
    exec(compile(tree, name, "exec"), names)
    if last is None:
        return None
    value = eval(compile(ast.Expression(last.value), name, "eval"), names)
    if value is not None:
        print(value)
    sys.stdout.flush()
    return value if _travels(value) else None
