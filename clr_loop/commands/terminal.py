"""What a command shares with its terminal: flags, help, errors of one line, closing lines, and a quiet TensorFlow.

Nothing here imports TensorFlow before `start_tensorflow`, so `--help` and a wrong flag answer at once.
"""

from __future__ import annotations

import contextlib
import difflib
import io
import itertools
import os
import re
import shlex
import shutil
import signal
import sys
import textwrap
import traceback
import warnings
from collections.abc import Callable, Collection, Iterator
from logging import ERROR, Formatter, getLogger
from pathlib import Path
from typing import NoReturn

from absl import flags, logging
from tqdm import tqdm

import clr_loop
from clr_loop.arguments import speaking_flags
from clr_loop.data.functions import in_one_line
from clr_loop.runs import files as run_files
from clr_loop.runs.lines import wrapped
from clr_loop.silence import without_stderr

FLAGS = flags.FLAGS

# What a mistake of the user raises in the package or in a script; any other error from there is a fault.
_EXPECTED = (ValueError, TypeError, OSError)

# What --help lists, in the order of use. --helpfull adds the other flags of these modules and of the command itself.
_COMMAND = "the command's own"
_HELP = {
    "Data and model": ("dataset", "model", "optimizer", "clr_loop.commands.model_flags"),
    "Schedule": (
        "schedule", "schedules", "learning_rate", "base_lr", "max_lr", "step_size", "num_steps",
        "clr_loop.commands.schedule_flags", "clr_loop.commands.arm_flags",
    ),
    "Run": (
        "batch_size", "batch_sizes", "epochs", "seed", "seeds", "tune", "resume", _COMMAND,
        "clr_loop.commands.loop_flags", "clr_loop.commands.cores",
    ),
    "Output": ("run_dir", "output_dir", "overwrite", "clr_loop.commands.output_flags"),
    "Help": ("help", "helpfull", "clr_loop.commands.terminal"),
}  # fmt: skip
_PLACES = [name for names in _HELP.values() for name in names]
_HEADINGS = {name: heading for heading, names in _HELP.items() for name in names}
# A command with few flags has no second help.
_FEW = 12

_CODE_OR_PLACE = ("dataset", "data_dir", "model", "init_from", "optimizer", "schedule")

_WRITTEN_OUT = {
    "lr": "learning_rate", "bs": "batch_size", "wd": "weight_decay", "out": "output_dir", "output": "output_dir",
}  # fmt: skip

# TensorBoard's pages Scalars and Custom Scalars select all runs at first, but none of more than so many.
_MOST_SELECTED = 40

# What each command of this package is called by the installed program `clr-loop`.
COMMANDS = {
    "train": "train", "range_test": "range-test", "compare_batch_sizes": "compare", "preview": "preview",
    "reproduce_smith": "reproduce-smith", "prove_resume": "prove-resume",
}  # fmt: skip
PROGRAM = "clr-loop"

flags.DEFINE_bool("help", False, "Print the flags that matter most.", short_name="h")
flags.DEFINE_bool("helpfull", False, "Print all flags.")


Main = Callable[[], int | None]


def command(main: Main, define_flags: Callable[[], None] = lambda: None) -> Callable[[], NoReturn]:
    """Return a function that defines and reads the flags of the process, calls main, and exits.

    A user's mistake becomes one line and exit code 2; --verbosity=1 shows where. The help is the docstring of main's
    module with the flags that are key to it.
    """
    module = main.__module__

    def parse_and_run() -> int | None:
        rest = FLAGS(sys.argv)[1:]
        if FLAGS.help or FLAGS.helpfull:
            print(as_called(f"{sys.modules[module].__doc__ or ''}{_help(module)}"))  # Python -OO has no docstrings.
            return 0
        if rest:
            raise ValueError(f"{rest[0]!r} is not a flag; write flags as --name=value.")
        return main()

    def run() -> NoReturn:
        _open_streams()
        define_flags()
        if signal.getsignal(signal.SIGINT) is not signal.SIG_IGN:  # A job in the background ignores it.
            signal.signal(signal.SIGINT, signal.default_int_handler)  # In place of the handler for the imports.
        sys.exit(_guard(parse_and_run, module))

    return run


def _open_streams() -> None:
    """Let a command write wherever it was started: into closed streams, and into those that lack some characters."""
    for name in ("stdout", "stderr"):
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, "w"))  # noqa: SIM115 (For as long as the process lives.)
        elif isinstance(getattr(sys, name), io.TextIOWrapper):
            with contextlib.suppress(OSError):
                getattr(sys, name).reconfigure(errors="replace")


def _help(module: str) -> str:
    """Return the flags under their headings."""

    def place(flag: flags.Flag) -> str:
        named = (flag.name, FLAGS.find_module_defining_flag(flag.name), _COMMAND)
        return next(name for name in named if name in _HEADINGS)

    every = sorted(_own_flags(module), key=lambda flag: _PLACES.index(place(flag)))
    is_full = FLAGS.helpfull or len(every) <= _FEW
    shown = every if is_full else [flag for flag in every if flag.name in _HEADINGS]
    lines = []
    for heading, of_heading in itertools.groupby(shown, lambda flag: _HEADINGS[place(flag)]):
        lines += ["", f"{heading}:"]
        for flag in of_heading:
            default = (flag.default_as_str or "").strip("'")
            usual = f" (default: {default})" if default not in ("", "false") else ""
            text = f"--{'[no]' * flag.boolean}{flag.name}: {flag.help.replace('|', ' | ')}{usual}"
            lines += textwrap.wrap(text, 100, initial_indent="  ", subsequent_indent="      ")
    more = "" if is_full else f"--helpfull lists {len(every) - len(shown)} more flags. "
    return "\n".join([*lines, "", f"{more}--flagfile=FILE reads flags from a file, one in each line."])


def _likeliest(name: str, module: str) -> str:
    """Return in words which flag was meant by a name that is none."""
    near = difflib.get_close_matches(_WRITTEN_OUT.get(name, name), [flag.name for flag in _own_flags(module)], 1, 0.58)
    return f"did you mean --{near[0]}? " if near else ""


def say(line: str) -> None:
    """Print a line at once, above a progress bar if there is one."""
    tqdm.write(line)
    sys.stdout.flush()


def note(text: str) -> None:
    """Print a text at once; on a terminal its lines are broken between words."""
    say(wrapped(text))


def say_markdown(text: str) -> None:
    """Print a report; on a terminal its tables and lines fit into 100 columns."""
    text = as_called(text)
    if sys.stdout.isatty():
        from rich.console import Console  # Only now: --help and a wrong flag shall be answered at once.
        from rich.markdown import Markdown

        console = Console(width=min(100, shutil.get_terminal_size().columns))
        console.print(Markdown(text))
    else:
        print(text, flush=True)


def _guard(main: Main, module: str) -> int:
    """Call main and return an exit code."""
    logging.use_absl_handler()
    logging.get_absl_handler().setFormatter(Formatter("%(levelname)s: %(message)s"))
    getLogger("matplotlib").setLevel(ERROR)  # It replaces a font that is missing, which changes no result.
    warnings.formatwarning = lambda message, *args, **kwargs: f"warning: {message}\n"
    # The description of a schedule says this, before it is used, with the value to use instead.
    warnings.filterwarnings("ignore", message=".* holds its last rate", category=UserWarning)
    try:
        with speaking_flags():
            return main() or 0
    except KeyboardInterrupt:
        goes_on = f" Resume it by {resume_command()}" if "resume" in FLAGS and FLAGS.is_parsed() else ""
        return _fail(f"Interrupted; what was written is kept.{goes_on}", code=130)
    except SystemExit as error:
        return _fail(f"The command exited early: {in_one_line(error, _own_folders(module))}.")
    except flags.UnrecognizedFlagError as error:
        name = error.flagname
        return _fail(
            f"Unknown command line flag {name!r}; {_likeliest(name, module)}--help and --helpfull list the flags."
        )
    except flags.Error as error:
        return _fail(f"{' '.join(str(error).split())}; --help lists the flags.")
    except Exception as error:
        logging.debug("Where it was raised:", exc_info=True)
        return _fail(_one_line(error, _own_folders(module)))


def _own_folders(module: str) -> tuple[str, str]:
    """Return the folders of the package and of the command's module, where errors are raised that need no place."""
    return str(Path(__file__).parents[1]), str(Path(sys.modules[module].__file__ or "").resolve().parent)


def _one_line(error: Exception, own: tuple[str, ...]) -> str:
    """Return what an error says. One that the package does not raise itself is named, with the user's line."""
    is_own = traceback.extract_tb(error.__traceback__)[-1].filename.startswith(own)
    if is_own and (isinstance(error, _EXPECTED) or type(error).__module__.startswith("clr_loop.")):
        return " ".join(str(error).split())
    line = in_one_line(error, own)
    if is_own:
        traceback.print_exc()
        return f"{line}; this is a fault of clr_loop"
    is_placed = isinstance(error, OSError) or line.endswith(")")
    return line if is_placed else f"{line} (--verbosity=1 shows where)"


def _fail(message: str, code: int = 2) -> int:
    tqdm.write(f"error: {as_called(message)}", file=sys.stderr)
    return code


def start_tensorflow(prepare: Callable[[], None] = lambda: None) -> None:
    """Start TensorFlow quietly; let a GPU take memory as needed and compute repeatably.

    `prepare` is called before anything is computed, for what must be set by then.
    """
    import_tensorflow()
    with status("starting TensorFlow"), contextlib.nullcontext() if FLAGS.verbosity > 0 else without_stderr():
        import tensorflow as tf

        gpus = tf.config.list_physical_devices("GPU")
        for gpu in gpus:
            tf.config.experimental.set_memory_growth(gpu, True)
        if gpus:
            tf.config.experimental.enable_op_determinism()
        prepare()
        tf.config.list_logical_devices()


def import_tensorflow() -> None:
    """Import TensorFlow, and Keras on it, with the same settings whatever the user's are.

    They are quiet unless --verbosity=1 is given.
    """
    os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "1")  # By itself TensorFlow does so on some processors only.
    os.environ["KERAS_BACKEND"] = "tensorflow"
    os.environ.pop("TF_USE_LEGACY_KERAS", None)
    with status("importing TensorFlow"):
        if FLAGS.verbosity <= 0:
            clr_loop.quiet()
        import keras
    keras.config.set_floatx("float32")
    keras.config.set_epsilon(1e-7)
    keras.config.set_image_data_format("channels_last")


@contextlib.contextmanager
def status(text: str) -> Iterator[None]:
    """Say on a terminal what is being done for some seconds, and erase it afterwards. Lines are printed above it."""
    with tqdm(bar_format=f"{text} …", disable=None, leave=False):
        yield


def where(directory: Path, summary: Path | None = None) -> str:
    """Return the closing lines: where the results are, and how to see them in TensorBoard from any folder.

    Where there is a summary, the first command opens it alone and the second one all runs.
    """
    # TensorBoard draws 1,000 random points of a longer series unless told otherwise; 0, once "all", now means none.
    every_step = _tensorboard(directory, "--samples_per_plugin", "scalars=1000000000")
    look = every_step if summary is None else f"{_tensorboard(summary)}\nall:     {every_step}"
    num_runs = len({path.parent for path in directory.rglob("*.tfevents.*")})
    toggle = f"\n         (its pages of scalars select none of {num_runs} runs at first: press Toggle all runs)"
    return f"results: {directory}\nlook:    {look}{toggle if num_runs > _MOST_SELECTED else ''}"


def _tensorboard(directory: Path, *options: str) -> str:
    """Return a command that opens a directory in TensorBoard and shows its address and errors, not TensorFlow's log."""
    tensorboard = _as_typed(_beside_python("tensorboard"), os.path.abspath)
    command = [tensorboard, "--logdir", os.path.abspath(directory), *options]
    return f"{shlex.join(command)} 2>&1 | grep -i ^tensorboard"


def resume_command() -> str:
    """Return the command that goes on with this run."""
    left_out = re.compile(r"--?(no)?(resume|overwrite)(=.*)?|--?on_change=rebase|--?resume_from=.*")
    text = "\0".join(sys.argv).replace("on_change\0rebase", "on_change=rebase").replace("_from\0", "_from=")
    kept = [argument for argument in text.split("\0") if not left_out.fullmatch(argument)]
    # The schedule was shifted once, and its shifted form is saved with the run.
    rebased = ["--on_change=keep"] if "on_change" in FLAGS and FLAGS.on_change == "rebase" else []
    return shlex.join([*program(), *kept[1:], *rebased, "--resume"])


def program(name: str | None = None) -> list[str]:
    """Return how to call a command of the package in the way in which this one was called; by default this one.

    That is `python scripts/train.py` in a checkout, and `clr-loop train` where the package is installed.
    """
    path, _, own = sys.argv[0].rpartition(" ")
    if _is_installed():
        return [_as_typed(Path(path)), own if name is None else COMMANDS[name]]
    script = sys.argv[0] if name is None else str(Path(sys.argv[0]).with_name(f"{name}.py"))
    return [_as_typed(_beside_python("python")), script]


def as_called(text: str) -> str:
    """Return a text in which each script has the name by which this command was called; see `program`."""
    if not _is_installed():
        return text
    return re.sub(rf"(python )?(scripts/)?\b({'|'.join(COMMANDS)})\.py", lambda m: f"{PROGRAM} {COMMANDS[m[3]]}", text)


def _is_installed() -> bool:
    """Return whether `clr-loop` was called, which puts the name of the command behind its own in sys.argv[0]."""
    return sys.argv[0].endswith(tuple(f"{PROGRAM} {name}" for name in COMMANDS.values()))


def _as_typed(own: Path, path_of: Callable[[Path], str] = os.path.relpath) -> str:
    """Return how to call a program: by its name if that finds it, else by its path."""
    by_name = shutil.which(own.name)
    return own.name if by_name and Path(by_name).samefile(own) else path_of(own)


def _beside_python(name: str) -> Path:
    """Return the path of a program in the environment of this Python."""
    return Path(sys.executable).with_name(name)


def given_flags(module: str, left_out: Collection[str]) -> list[str]:
    """Return the flags of a command's module that were given, as arguments."""
    return [flag.serialize() for flag in _own_flags(module) if flag.present and flag.name not in left_out]


def use_saved_flags(module: str, run_dir: str, left_out: Collection[str], may_differ: Collection[str]) -> None:
    """Set the flags of a command's module to those that a run was started with.

    Args:
        module: the name of the module.
        run_dir: where config.json has them as `command`, from `given_flags(module, left_out)`.
        left_out: flags that stay as they are now.
        may_differ: flags that stay as they are now if they were given.

    Raises:
        ValueError: if config.json has no such flags, or one that names code or a place and was not given again: a run
            directory may come from anybody, and says neither what is run nor where is written.
    """
    config = Path(run_dir) / run_files.CONFIG
    if not config.exists():
        return
    command = run_files.read_json(config).get("command")
    own = {flag.name for flag in _own_flags(module) if flag.name not in left_out}
    if not isinstance(command, list) or not all(_name_of(text) in own for text in command):
        raise ValueError(f"{config} has no flags to keep of this command; leave out --on_change=keep and repeat them.")
    trusted = [text for text in command if not _names_code_or_place(text)]
    again = [text for text in command if text not in trusted and not FLAGS[_name_of(text)].present]
    if again:
        raise ValueError(
            f"--on_change=keep takes no flags that name code or files from {config}; if you trust them, add "
            f"{shlex.join(again)}."
        )
    stay = [*may_differ, *_CODE_OR_PLACE]
    now = [flag.serialize() for flag in _own_flags(module) if flag.present and flag.name in stay]
    for flag in _own_flags(module):
        if flag.name not in left_out:
            flag.unparse()
    FLAGS([sys.argv[0], *trusted, *now])


def _name_of(text: object) -> str:
    """Return the name of the flag in an argument such as `--seed=3` or `--noresume`; "" if there is none."""
    name = str(text).removeprefix("--").partition("=")[0]
    return name if name in FLAGS else name.removeprefix("no")


def _names_code_or_place(text: str) -> bool:
    """Return whether a flag's value is no word of this package, but the name of a function or a file."""
    value = text.partition("=")[2]
    return _name_of(text) in _CODE_OR_PLACE and not re.fullmatch(r"\w+", value)


def _own_flags(module: str) -> list[flags.Flag]:
    return FLAGS.get_key_flags_for_module(sys.argv[0] if module == "__main__" else module)
