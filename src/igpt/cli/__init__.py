"""The command line: a table of commands, each imported only when it is called.

A command module has `EXAMPLE`, `configure(parser)` and `run(args, say) -> Report`. Progress goes to
stderr through `say`; stdout has the report: its text, or with `--json` one JSON object.
"""

from __future__ import annotations

import argparse
import atexit
import gc
import io
import json
import re
import signal
import sys
import warnings
from importlib import import_module
from typing import NoReturn

from igpt.cli.report import INTERRUPTED, LOST_PROCESS, USER_ERROR, Report
from igpt.config import UserError, first_line
from igpt.console import print_line
from igpt.parallel import launch

COMMANDS = {
    "demo": "the whole tour on handwritten digits, in 1 to 2 minutes",
    "pretrain": "train an Image GPT on your pictures, from a recipe",
    "eval": "likelihood of held-out pictures under a model",
    "sample": "paint new pictures",
    "complete": "complete pictures from their first part",
    "score": "how surprising pictures are and where, and which do not belong",
    "probe": "classify from a frozen model's layers, with few labels or all",
    "features": "write what the layers know of each picture to a file",
    "finetune": "train a model to classify, on labelled pictures",
    "predict": "classes of pictures, and how well they fit known labels",
    "sweep": "train every combination of sizes, colours or other fields, and compare",
    "fetch": "download a model that OpenAI published",
    "import": "turn a checkpoint of OpenAI's into a model folder",
    "export": "write a model as ONNX graphs, for use without PyTorch",
    "push": "share a run on the Hugging Face Hub",
    "prepare": "resize a source of pictures once, into shards to train on",
    "palette": "fit a colour palette to your pictures",
    "plan": "what a recipe needs on a cluster: memory, days, bytes",
    "info": "what a preset, a recipe, a run or a model is made of, and what it costs",
}

# The commands that torchrun may start on several processes.
PARALLEL = ("pretrain", "finetune", "eval", "probe", "features", "palette")


# What argparse says of an option or command that it does not know.
UNKNOWN = re.compile(
    r"unrecognized arguments: (?P<option>--[\w-]+)|invalid choice: '(?P<name>.+?)'"
)


class Parser(argparse.ArgumentParser):
    """An argparse parser that reports mistakes in one line, with the word that may be meant."""

    def error(self, message: str) -> NoReturn:
        meant = self._meant(message)
        question = f"did you mean {meant}? " if meant else ""
        self.exit(USER_ERROR, f"{self.prog}: error: {message} ({question}see {self.prog} --help)\n")

    def _meant(self, message: str) -> str | None:
        """The known option, command or choice that is nearest to the unknown one of `message`."""
        from difflib import get_close_matches

        unknown = UNKNOWN.search(message)
        if unknown is None:
            return None
        choices = [str(name) for action in self._actions for name in action.choices or ()]
        options = [option for action in self._actions for option in action.option_strings]
        known = choices if unknown["name"] else options
        return next(iter(get_close_matches(unknown["option"] or unknown["name"], known)), None)


def _overview() -> Parser:
    import igpt

    table = "\n".join(f"  {name:<10} {summary}" for name, summary in COMMANDS.items())
    parser = Parser(
        prog="igpt",
        usage="igpt COMMAND ...",
        description="Image GPT: pretrain on pixels, then sample, complete and score pictures.",
        epilog=f"commands:\n{table}\n\n`igpt COMMAND --help` explains one.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"igpt {igpt.__version__}")
    parser.add_argument("command", choices=COMMANDS, metavar="COMMAND", help=argparse.SUPPRESS)
    return parser


def _say(line: str) -> None:
    if launch.is_first():
        print_line(line, sys.stderr)


def command_parser(name: str) -> Parser:
    """The parser of one command of the table."""
    command = import_module(f"igpt.cli.{name}")
    parser = Parser(
        prog=f"igpt {name}",
        description=f"igpt {name}: {COMMANDS[name]}.",
        epilog=f"example:\n  {command.EXAMPLE}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    command.configure(parser)
    parser.add_argument("--json", action="store_true", help="print one JSON object on stdout")
    parser.add_argument("--debug", action="store_true", help="show the traceback of an error")
    return parser


def _run(name: str, argv: list[str]) -> int:
    args = command_parser(name).parse_intermixed_args(argv)
    if launch.size() > 1 and name not in PARALLEL:
        raise UserError(
            f"torchrun starts {', '.join(PARALLEL)} on several processes, {name} runs in one"
        )
    report: Report = import_module(f"igpt.cli.{name}").run(args, _say)
    if launch.is_first():
        print_line(json.dumps(report.values) if args.json else report.text, sys.stdout)
    return report.status


def main(argv: list[str] | None = None) -> NoReturn:
    """Run the command line and exit: 0 done, 2 a user's mistake, 130 interrupted.

    Each of the processes that torchrun started exits so, or with 1 when it lost another one.
    """
    argv = sys.argv[1:] if argv is None else argv
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # for names that its encoding lacks
    # Python's garbage collections at exit would spend most of a second on PyTorch's objects, and
    # free nothing.
    atexit.register(gc.freeze)
    name = _overview().parse_args(argv[:1] or ["--help"]).command
    warnings.showwarning = lambda message, *_args, **_kwargs: _say(f"warning: {message}")
    try:
        status = _run(name, argv[1:])
    except (UserError, OSError, MemoryError, RuntimeError, launch.LostProcess) as error:
        # A full disk, a forbidden folder or too little memory is no bug of ours.
        lacking = _lacks_memory(error)
        if "--debug" in argv or (isinstance(error, RuntimeError) and not lacking):
            raise
        _tell(f"igpt {name}: error: {'not enough memory: ' if lacking else ''}{first_line(error)}")
        status = LOST_PROCESS if isinstance(error, launch.LostProcess) else USER_ERROR
    except KeyboardInterrupt:
        _say("interrupted")
        status = INTERRUPTED
    sys.exit(status)


def _lacks_memory(error: Exception) -> bool:
    """Whether `error` is of too little memory; for the CPU's, PyTorch tells only by its message."""
    told = type(error).__name__ == "OutOfMemoryError" or "DefaultCPUAllocator" in str(error)
    return told or isinstance(error, MemoryError)


def _tell(line: str) -> None:
    """Say what went wrong, once for all processes."""
    if launch.size() == 1:
        _say(line)
        return
    from igpt.parallel.meeting import is_first_to_fail

    signal.signal(signal.SIGTERM, signal.SIG_IGN)  # when one process ends, torchrun ends the others
    if is_first_to_fail():
        print_line(line, sys.stderr)
