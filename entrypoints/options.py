"""Command-line options made from dataclass fields, and how mistakes are shown.

A field `batch_size` is the option `--batch-size`, also written `--batch_size`, which is what
`mlflow run -P batch_size=...` passes on.
"""

import contextlib
import dataclasses
import gc
import os
import signal
import sys
import types
import typing
import warnings
from collections.abc import Callable
from typing import Any, NoReturn

import click

from entrypoints.caller import as_typed_there
from entrypoints.ending import ended_when_asked
from entrypoints.output import enduring_output, lost_output
from pose.config import decimal_number, whole_number
from pose.errors import InputError, printable

# The value of an option that was not on the command line. MLproject's defaults say `none`, which
# means no value for every option that can have none.
NOT_GIVEN = object()
_BOOLEANS = {"true": True, "1": True, "yes": True, "false": False, "0": False, "no": False}


# Puts an option on a command.
Decorator = Callable[[Callable[..., Any]], Callable[..., Any]]


class _Value(click.ParamType):  # type: ignore[type-arg] # generic in newer versions of click only
    """A value of a dataclass field's type, from the text of a command line."""

    def __init__(self, annotation: Any) -> None:
        self.is_optional = isinstance(annotation, types.UnionType)
        if self.is_optional:
            (annotation,) = (a for a in typing.get_args(annotation) if a is not types.NoneType)
        self.annotation = annotation
        self.is_list = typing.get_origin(annotation) is tuple
        self.name = "int,int" if self.is_list else annotation.__name__

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        if not isinstance(value, str):
            return value
        assert param is not None
        _check_text(param.name, value)
        if self.is_optional and value.lower() == "none":
            return None
        if value.startswith("~") and self.annotation is str:
            # A path: the shell leaves the one in `-P dataset=~/data` to us.
            return os.path.expanduser(value)
        try:
            if self.annotation is bool:
                return _BOOLEANS[value.lower()]
            if self.is_list:
                return tuple(whole_number(part) for part in value.split(","))
            if self.annotation is int:
                return whole_number(value)
            if self.annotation is float:
                return decimal_number(value)
            return self.annotation(value)
        except (ValueError, KeyError):
            expected = {"bool": "true or false", "int,int": "whole numbers joined by commas"}
            kind = {"int": "a whole number", "float": "a number"}.get(self.name, self.name)
            shown = value if len(value) <= 100 else f"{value[:100]}..."
            raise InputError(
                f"{param.name} must be {expected.get(self.name, kind)}, got {shown!r}"
            ) from None


def _check_text(name: str | None, text: str) -> None:
    """Refuse what no option can mean.

    Raises:
        InputError: nothing, or bytes that are not UTF-8, which Python keeps as surrogates.
    """
    if not text.strip():
        # A shell's unset variable, most likely; it must not silently mean something.
        raise InputError(f"{name} must not be empty: give a value, or leave it out")
    try:
        text.encode()
    except UnicodeEncodeError:
        # A path in another encoding, which neither MLflow nor a table can hold.
        raise InputError(f"{name} must be in UTF-8, got {printable(text)}: rename it") from None


def option(
    name: str,
    annotation: Any,
    help: str,
    *,
    default: Any = NOT_GIVEN,
    lone: str | None = None,
) -> Decorator:
    """One option in both spellings; a bool takes true or false, or stands alone for true.

    Args:
        default: what the command gets without it; `NOT_GIVEN` leaves it to the command.
        lone: the text that it stands for without a value; None: it needs one.
    """
    flags = list(dict.fromkeys([f"--{name.replace('_', '-')}", f"--{name}"]))
    if annotation is bool:
        lone = "true"
    lone_flag: dict[str, Any] = {} if lone is None else {"is_flag": False, "flag_value": lone}
    return click.option(
        *flags, name, type=_Value(annotation), default=default, help=help, **lone_flag
    )


def field_options(
    dataclass: type, *, without: tuple[str, ...] = (), only: tuple[str, ...] | None = None
) -> Decorator:
    """An option for each field of `dataclass`, but for those in `without`, or for `only` these."""

    def decorate(command: Callable[..., Any]) -> Callable[..., Any]:
        hints = typing.get_type_hints(dataclass)
        for field in reversed(dataclasses.fields(dataclass)):
            if field.name not in without and (only is None or field.name in only):
                help = f"{field.metadata['help']}{_shown(field.default)}"
                command = option(field.name, hints[field.name], help)(command)
        return command

    return decorate


def _shown(default: Any) -> str:
    if default is None or default == ():
        return ""
    text = ",".join(map(str, default)) if isinstance(default, tuple) else str(default)
    return f"  [default: {text.lower() if isinstance(default, bool) else text}]"


def fields_given(dataclass: type, arguments: dict[str, Any]) -> dict[str, Any]:
    """Those arguments that are fields of `dataclass` and were on the command line.

    Files and folders to read are as the user means them, who may be in another folder.
    """
    fields = {field.name: field.metadata for field in dataclasses.fields(dataclass)}
    given = {k: v for k, v in arguments.items() if k in fields and v is not NOT_GIVEN}
    if "MLFLOW_RUN_ID" in os.environ:
        for name, value in given.items():
            meta = fields[name]
            if meta["is_input"] and value is not None and value not in meta["words"]:
                given[name] = as_typed_there(value, is_many=meta["is_many"])
    return given


def given_or(value: Any, default: Any) -> Any:
    """`value`, or `default` where it was not given."""
    return default if value is NOT_GIVEN else value


def take_mlflow_run_id() -> str | None:
    """The run that `mlflow run` made for this command, if any.

    Taken out of the environment, or MLflow's own calls would take it for theirs.
    """
    return os.environ.pop("MLFLOW_RUN_ID", None)


def run_command(
    command: click.Command, *, stops_softly: bool = False, is_endless: bool = False
) -> None:
    """Run a command; a mistake in its input is one line and exit code 2, without a traceback.

    Args:
        stops_softly: it minds requests to stop itself; others end where they are.
        is_endless: it works until it is asked to end.
    """
    ending = contextlib.nullcontext() if stops_softly else ended_when_asked(is_endless=is_endless)
    # Pillow warns of damaged metadata, which costs no pixel, and of sizes below our limit; images
    # that cannot be read are named by us.
    warnings.filterwarnings("ignore", module=r"PIL\.")
    with enduring_output(), ending:
        _run(command)


def _run(command: click.Command) -> NoReturn:
    try:
        code = command.main(standalone_mode=False) or 0
        sys.stdout.flush()
        if reason := lost_output():
            _fail(f"standard output must be taken, found: {reason}; the work itself is done")
        if code == 0:
            # All is done: the second that the interpreter takes to end must not make it a failure.
            for number in (signal.SIGINT, signal.SIGTERM):
                signal.signal(number, signal.SIG_IGN)
        sys.exit(code)
    except click.exceptions.Abort:
        sys.exit(130)
    except click.ClickException as error:
        _fail(error.format_message())
    except InputError as error:
        _fail(str(error))
    except KeyboardInterrupt:
        sys.exit(130)
    finally:
        # All that is left is to end: without this the interpreter looks through the hundreds of
        # thousands of objects of torch and MLflow again and again, for three seconds.
        gc.freeze()


def _fail(message: str) -> NoReturn:
    # What was printed comes first, also where both go into one log.
    sys.stdout.flush()
    click.echo(f"error: {' '.join(message.split())}", err=True)
    sys.exit(2)
