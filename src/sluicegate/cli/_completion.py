"""Shell completion: scripts for bash, zsh and fish, made from the parser of the command line."""

from __future__ import annotations

import argparse
import ast
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import attrs

from sluicegate.cli._targets import UsageError


if TYPE_CHECKING:
    from collections.abc import Iterator


@attrs.frozen
class _Option:
    """An option of a command.

    Attributes:
        flags: Its spellings.
        value: The name of its value, or nothing for a switch.
        choices: The values that it takes; empty for any.
    """

    flags: tuple[str, ...]
    value: str
    choices: tuple[str, ...]
    help: str


@attrs.frozen
class _Command:
    """A command: its options, and the choices of its argument, or what that is: a TARGET or a FILE.

    Attributes:
        name: Its name; that of a command of a group has two words, ``runs list``.
        place: How many arguments come before its TARGET; None if it takes none.
    """

    name: str
    help: str
    options: tuple[_Option, ...]
    place: int | None
    takes_file: bool
    choices: tuple[str, ...]

    @property
    def group(self) -> str:
        """The group of the command; empty for none."""
        return self.name.rpartition(" ")[0]

    @property
    def word(self) -> str:
        """The last word of the name."""
        return self.name.rpartition(" ")[2]


def completion(arguments: argparse.Namespace, parser: argparse.ArgumentParser) -> int:
    """Print the script of a shell, or the completions of a partial target."""
    if arguments.targets is not None:
        for target in _targets(arguments.targets):
            print(target)  # noqa: T201
        return 0
    if arguments.shell is None:
        msg = f"completion needs the name of a shell; expected one of {', '.join(SHELLS)}"
        raise UsageError(msg)
    sys.stdout.write(SHELLS[arguments.shell](tuple(_commands(parser))))
    return 0


def _commands(parser: argparse.ArgumentParser, group: str = "") -> Iterator[_Command]:
    """Yield the commands of a parser; a group comes before its own commands."""
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            summaries = {choice.dest: choice.help or "" for choice in action._choices_actions}
            # typeshed knows the keys of the choices, and not what they are
            commands: dict[str, argparse.ArgumentParser] = {**action.choices}  # pyright: ignore[reportUnknownMemberType]
            for name, command in commands.items():
                yield _command(f"{group}{name}", summaries.get(name, ""), command)
                yield from _commands(command, f"{name} ")


def _command(name: str, summary: str, parser: argparse.ArgumentParser) -> _Command:
    shown = [action for action in parser._actions if action.help != argparse.SUPPRESS]
    positional = [action for action in shown if not action.option_strings]
    names = [action.metavar for action in positional]
    return _Command(
        name,
        summary,
        tuple(
            _Option(
                tuple(action.option_strings),
                "" if action.nargs == 0 else str(action.metavar or action.dest),
                tuple(map(str, action.choices or ())),
                action.help or "",
            )
            for action in shown
            if action.option_strings
        ),
        names.index("TARGET") if "TARGET" in names else None,
        "FILE" in names,
        tuple(str(choice) for action in positional for choice in action.choices or ()),
    )


def _groups(commands: tuple[_Command, ...]) -> list[str]:
    return list(dict.fromkeys(command.group for command in commands if command.group))


# -- targets --------------------------------------------------------------------------------------


def _targets(begun: str) -> Iterator[str]:
    """Yield the targets of a file that complete ``path/to/file.py:Na``; nothing is imported."""
    path, colon, name = begun.rpartition(":")
    if not colon:
        return
    try:
        tree = ast.parse(Path(path).read_text(encoding="utf-8"))
    except (OSError, ValueError, SyntaxError):
        return
    for found in _workflow_names(tree):
        if found.startswith(name):
            yield f"{path}:{found}"


def _workflow_names(tree: ast.Module) -> list[str]:
    """Return the names that the source shows to be workflows: classes, objects, and functions."""
    classes = {"Workflow"}
    names: list[str] = []
    for node in tree.body:
        match node:
            case ast.ClassDef(name=name, bases=bases) if classes & set(map(_last_name, bases)):
                classes.add(name)
                names.append(name)
            case (
                ast.Assign(targets=[ast.Name(id=name)], value=ast.Call(func=called))
                | ast.AnnAssign(target=ast.Name(id=name), value=ast.Call(func=called))
            ) if _last_name(called) in classes:
                names.append(name)
            case ast.FunctionDef(name=name, returns=ast.expr() as made) if (
                _last_name(made) in classes
            ):
                names.append(name)
            case _:
                pass
    return names


def _last_name(node: ast.expr) -> str:
    """Return ``Workflow`` of ``sluicegate.Workflow[str]``."""
    if isinstance(node, ast.Subscript):
        node = node.value
    if isinstance(node, ast.Constant) and isinstance(node.value, str):
        return node.value.partition("[")[0].rpartition(".")[2]
    return ast.unparse(node).rpartition(".")[2]


# -- bash -----------------------------------------------------------------------------------------


_BASH = """\
# bash completion of sluicegate. In ~/.bashrc: eval "$(sluicegate completion bash)"
_sluicegate() {
    local IFS=$' \\t\\n' line=${COMP_LINE:0:COMP_POINT} current='' previous='' command='' word
    local -a words
    read -ra words <<< "$line"
    if [[ $line != *[[:space:]] ]]; then
        current=${words[${#words[@]} - 1]}
        unset "words[${#words[@]} - 1]"
    fi
    previous=${words[${#words[@]} - 1]}
    for word in "${words[@]:1}"; do
        if [[ $word != -* ]]; then
            command=${command:+$command }$word
            case $command in @GROUPS@) ;; *) break ;; esac
        fi
    done
    IFS=$'\\n'
    COMPREPLY=()
    case "$command $previous" in
@VALUES@
    esac
    if [[ -z $command ]]; then
        COMPREPLY=($(IFS=' '; compgen -W '@COMMANDS@' -- "$current"))
    elif [[ $current == -* ]]; then
        case $command in
@FLAGS@
        esac
    else
        case $command in
@ARGUMENTS@
        esac
    fi
}

_sluicegate_target() {
    if [[ $current == *.py:* ]]; then
        COMPREPLY=($("${words[0]}" completion --targets "$current" 2> /dev/null))
        # bash completes only what follows the last colon.
        [[ $COMP_WORDBREAKS == *:* ]] && COMPREPLY=("${COMPREPLY[@]#"${current%:*}:"}")
    else
        COMPREPLY=($(compgen -f -X '!*.py' -- "$current") $(compgen -d -S / -- "$current"))
        compopt -o nospace 2> /dev/null
    fi
}

complete -F _sluicegate sluicegate
"""


_BASH_FILES = 'COMPREPLY=($(compgen -f -- "$current")); compopt -o filenames 2> /dev/null'


def _bash(commands: tuple[_Command, ...]) -> str:
    values: list[str] = []
    flags: list[str] = []
    arguments: list[str] = []
    for command in commands:
        for option in command.options:
            if option.value:
                at = "|".join(f"'{command.name} {flag}'" for flag in option.flags)
                values.append(f"        {at}) {_bash_value(option)}; return ;;")
        words = " ".join(flag for option in command.options for flag in option.flags)
        flags.append(f"            '{command.name}') {_bash_words(words)} ;;")
        if command.place is not None:
            arguments.append(f"            '{command.name}') _sluicegate_target ;;")
        elif command.takes_file:
            arguments.append(f"            '{command.name}') {_BASH_FILES} ;;")
        elif command.choices:
            arguments.append(
                f"            '{command.name}') {_bash_words(' '.join(command.choices))} ;;"
            )
    return (
        _BASH.replace("@VALUES@", "\n".join(values))
        .replace("@COMMANDS@", " ".join(each.name for each in commands if not each.group))
        .replace("@GROUPS@", "|".join(_groups(commands)))
        .replace("@FLAGS@", "\n".join(flags))
        .replace("@ARGUMENTS@", "\n".join(arguments))
    )


def _bash_words(words: str) -> str:
    return f"COMPREPLY=($(IFS=' '; compgen -W '{words}' -- \"$current\"))"


def _bash_value(option: _Option) -> str:
    if option.choices:
        return _bash_words(" ".join(option.choices))
    if option.value == "FILE":
        return _BASH_FILES
    return ":"


# -- zsh ------------------------------------------------------------------------------------------


_ZSH = """\
#compdef sluicegate
# zsh completion of sluicegate. In ~/.zshrc, after compinit: eval "$(sluicegate completion zsh)"
_sluicegate() {
    local curcontext=$curcontext state line
    typeset -A opt_args
    _arguments -C '(- *)'{-h,--help}'[show help]' '(- *)--version[show the version]' \\
        '1:command:->command' '*::argument:->argument'
    case $state in
        command)
            local -a commands
            commands=(
@COMMANDS@
            )
            _describe command commands
            ;;
        argument)
            case $words[1] in
@CASES@
            esac
            ;;
    esac
}

_sluicegate_target() {
    if [[ $PREFIX == *.py:* ]]; then
        local -a names
        names=(${(f)"$(sluicegate completion --targets $PREFIX 2> /dev/null)"})
        compadd -a names
    else
        _files -S '' -g '*.py(-.)'
    fi
}

if [[ $funcstack[1] == _sluicegate ]]; then
    _sluicegate "$@"
else
    compdef _sluicegate sluicegate
fi
"""


def _zsh(commands: tuple[_Command, ...]) -> str:
    cases = "\n".join(_zsh_case(command, commands) for command in commands if not command.group)
    return _ZSH.replace("@COMMANDS@", _zsh_names(commands, "")).replace("@CASES@", cases)


def _zsh_names(commands: tuple[_Command, ...], group: str) -> str:
    return "\n".join(
        f"                {_single(f'{command.word}:{command.help}')}"
        for command in commands
        if command.group == group
    )


def _zsh_case(command: _Command, commands: tuple[_Command, ...]) -> str:
    inner = [each for each in commands if each.group == command.name]
    if inner:
        cases = "\n".join(_zsh_case(each, commands) for each in inner)
        return _ZSH_GROUP.format(
            name=command.word, commands=_zsh_names(commands, command.name), cases=cases
        )
    specs = [spec for option in command.options for spec in _zsh_option(option)]
    if command.place is not None:
        specs += [f"'{place}:id:'" for place in range(1, command.place + 1)]
        specs.append(f"'{command.place + 1}:target:_sluicegate_target'")
    elif command.takes_file:
        specs.append("'1:file:_files'")
    elif command.choices:
        specs.append(f"'1:argument:({' '.join(command.choices)})'")
    joined = " \\\n                        ".join(specs)
    return (
        f"                {command.word})\n                    _arguments {joined}\n"
        "                    ;;"
    )


_ZSH_GROUP = """\
                {name})
                    _arguments -C '1:command:->group' '*::argument:->member'
                    case $state in
                        group)
                            local -a commands
                            commands=(
{commands}
                            )
                            _describe command commands
                            ;;
                        member)
                            case $words[1] in
{cases}
                            esac
                            ;;
                    esac
                    ;;"""


def _zsh_option(option: _Option) -> Iterator[str]:
    told = option.help
    for letter in "\\[]:":
        told = told.replace(letter, f"\\{letter}")
    value = ""
    if option.value:
        action = f"({' '.join(option.choices)})" if option.choices else ""
        value = f":{option.value.lower()}:{'_files' if option.value == 'FILE' else action}"
    for flag in option.flags:
        yield _single(f"*{flag}[{told}]{value}")


def _single(text: str) -> str:
    """Return text in single quotes, for bash and zsh."""
    return "'" + text.replace("'", "'\\''") + "'"


# -- fish -----------------------------------------------------------------------------------------


_FISH = """\
# fish completion of sluicegate. In config.fish: sluicegate completion fish | source
function __sluicegate_targets
    set -l token (commandline -ct)
    if string match -q '*.py:*' -- $token
        sluicegate completion --targets $token 2> /dev/null
    else
        __fish_complete_suffix .py
    end
end

complete -c sluicegate -f
complete -c sluicegate -n __fish_use_subcommand -l version -d 'show the version'
"""


def _fish(commands: tuple[_Command, ...]) -> str:
    lines = [_fish_name(command, commands) for command in commands]
    lines += [line for command in commands for line in _fish_command(command, commands)]
    return _FISH + "\n".join(lines) + "\n"


def _fish_name(command: _Command, commands: tuple[_Command, ...]) -> str:
    """Return the line that completes the name of a command."""
    when = "__fish_use_subcommand"
    if command.group:
        others = " ".join(each.word for each in commands if each.group == command.group)
        when = f"'{_fish_seen(command.group)}; and not {_fish_seen(others)}'"
    return f"complete -c sluicegate -n {when} -a {command.word} -d {_fish_quoted(command.help)}"


def _fish_command(command: _Command, commands: tuple[_Command, ...]) -> Iterator[str]:
    """Yield the lines that complete the options and the argument of a command."""
    if any(each.group == command.name for each in commands):
        return  # the names of its commands are its argument
    seen = _fish_seen(command.word)
    if command.group:
        seen = f"{_fish_seen(command.group)}; and {seen}"
    start = f"complete -c sluicegate -n '{seen}'"
    for option in command.options:
        yield f"{start} {_fish_option(option)} -d {_fish_quoted(option.help)}"
    if command.place is not None:
        yield f"{start} -a '(__sluicegate_targets)'"
    elif command.takes_file:
        yield f"{start} -F"
    elif command.choices:
        yield f"{start} -a '{' '.join(command.choices)}'"


def _fish_option(option: _Option) -> str:
    flags = " ".join(f"-{'l' if len(f) > 2 else 's'} {f.lstrip('-')}" for f in option.flags)
    if option.choices:
        return f"{flags} -x -a '{' '.join(option.choices)}'"
    if option.value:
        return f"{flags} {'-r -F' if option.value == 'FILE' else '-x'}"
    return flags


def _fish_seen(words: str) -> str:
    return f"__fish_seen_subcommand_from {words}"


def _fish_quoted(text: str) -> str:
    escaped = text.replace("\\", "\\\\").replace("'", "\\'")
    return f"'{escaped}'"


SHELLS = {"bash": _bash, "zsh": _zsh, "fish": _fish}
