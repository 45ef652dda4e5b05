"""The commands `completion bash`, `zsh` and `fish`: scripts that complete commands, flags, keys and values."""

import functools
import shlex
from collections.abc import Iterator

from sora_jax.cli.flags import Command, Flag

SCRIPTS = {
    "bash": """\
# Completion of sora-jax for bash.
_sora_jax() {
  # Bash splits words at = and :, so the line is split here, at blanks.
  local line=${COMP_LINE:0:COMP_POINT} words word name flags values
  read -ra words <<<"$line"
  case $line in *[[:space:]]) words+=("");; esac
  word=${words[-1]} name=${words[1]-}
  COMPREPLY=()
  compopt +o nospace +o filenames
  if [ ${#words[@]} -le 2 ]; then
    COMPREPLY=($(compgen -W "@names@" -- "$word"))
    return
  fi
  case $name in @parents@)
    if [ ${#words[@]} -le 3 ]; then
      case $name in
@subcommands@
      esac
      COMPREPLY=($(compgen -W "$values" -- "$word"))
      return
    fi
    name="$name ${words[2]}"
  esac
  case $word in
    --*=*)
      values=
      case "$name ${word%%=*}" in
@values@
      esac
      word=${word#*=}
      if [ -n "$values" ]; then
        COMPREPLY=($(compgen -W "$values" -- "$word"))
      else
        compopt -o filenames
        mapfile -t COMPREPLY < <(compgen -f -- "$word")
      fi
      ;;
    *)
      case $name in
@flags@
      esac
      COMPREPLY=($(compgen -W "$flags" -- "$word"))
      case ${COMPREPLY[0]-} in *=) compopt -o nospace;; esac
      ;;
  esac
}
complete -F _sora_jax sora-jax
""",
    "zsh": """\
#compdef sora-jax
# Completion of sora-jax for zsh.
_sora_jax() {
  local name=$words[2]
  local -a names
  if (( CURRENT == 2 )); then
    names=(
@names@
    )
    _describe command names
    return
  fi
  case $name in @parents@)
    if (( CURRENT == 3 )); then
      case $name in
@subcommands@
      esac
      _describe command names
      return
    fi
    name="$name $words[3]"
    shift words
    (( CURRENT -= 1 ))
  esac
  shift words
  (( CURRENT -= 1 ))
  case $name in
@flags@
  esac
}
# As a file of a folder in fpath zsh calls it; sourced it registers itself.
if [ "$funcstack[1]" = _sora_jax ]; then _sora_jax; else compdef _sora_jax sora-jax; fi
""",
    "fish": """\
# Completion of sora-jax for fish.
function __sora_jax_is # the command is that of the arguments
    string match -q -- "sora-jax $argv *" (commandline -opc | string join " ")" "
end
function __sora_jax_at # the next word is the one after the arguments
    test (string join " " sora-jax $argv) = (commandline -opc | string join " ")
end
complete -c sora-jax -f
""",
}


def script(shell: str) -> str:
    """The completion script for a shell, made from the declared commands and flags."""
    return {"bash": _bash, "zsh": _zsh, "fish": _fish}[shell]()


def _commands() -> dict[str, Command]:
    # This module is one of the commands.
    from sora_jax.cli.commands import COMMANDS

    return COMMANDS


def _first_words() -> dict[str, str]:
    """First word of the commands -> summary."""
    made: dict[str, str] = {}
    for name, command in _commands().items():
        first, _, second = name.partition(" ")
        made[first] = f"{made[first]}, {second}" if first in made else second or command.summary
    return made


def _second_words() -> dict[str, dict[str, str]]:
    """First word of a command of two words -> its second words with their summaries."""
    made: dict[str, dict[str, str]] = {}
    for name, command in _commands().items():
        first, _, second = name.partition(" ")
        if second:
            made.setdefault(first, {})[second] = command.summary
    return made


def _flags(command: Command) -> Iterator[tuple[str, str, bool, tuple[str, ...]]]:
    """(name, meaning, whether it takes a value, the values if they are known) of a command's flags and keys."""
    from sora_jax.cli.help import CONFIG, config_keys

    flags: list[Flag] = [*command.all_flags, *([CONFIG] if command.config else [])]
    for flag in flags:
        yield flag.name, flag.meaning, flag.kind is not bool, flag.choices or flag.suggestions
    if command.config:
        for key, default, declared in config_keys():
            values = declared.choices or (("true", "false") if isinstance(default, bool) else ())
            yield f"config.{key}", declared.meaning, True, tuple(filter(None, values))
    yield "help", "Show the most used flags.", False, ()
    yield "help-all", "Show all flags.", False, ()


def _filled(shell: str, **parts: str) -> str:
    text = SCRIPTS[shell]
    for name, part in parts.items():
        text = text.replace(f"@{name}@", part)
    return text


def _bash() -> str:
    flags, values = [], []
    for name, command in _commands().items():
        words = " ".join(f"--{flag}{'=' * takes}" for flag, _, takes, _ in _flags(command))
        flags.append(f'        "{name}") flags="{words}" ;;')
        for flag, _, _, known in _flags(command):
            if known:
                values.append(f'        "{name} --{flag}") values="{" ".join(known)}" ;;')
    return _filled(
        "bash",
        names=" ".join(_first_words()),
        parents="|".join(_second_words()),
        subcommands="\n".join(
            f'        {first}) values="{" ".join(words)}" ;;' for first, words in _second_words().items()
        ),
        values="\n".join(values),
        flags="\n".join(flags),
    )


def _zsh() -> str:
    def described(words: dict[str, str]) -> str:
        return " ".join(shlex.quote(f"{word}:{text}") for word, text in words.items())

    flags = []
    for name, command in _commands().items():
        specs = []
        for flag, meaning, takes, known in _flags(command):
            about = meaning.replace("\\", "\\\\").replace("[", "\\[").replace("]", "\\]")
            value = f"({' '.join(known)})" if known else "_files"
            spec = f"=[{about}]:value:{value}" if takes else f"[{about}]"
            specs.append(shlex.quote(f"*--{flag}{spec}"))
        flags.append(f'    "{name}") _arguments {" ".join(specs)} ;;')
    subcommands = (f"        {first}) names=({described(words)}) ;;" for first, words in _second_words().items())
    return _filled(
        "zsh",
        names="      " + described(_first_words()),
        parents="|".join(_second_words()),
        subcommands="\n".join(subcommands),
        flags="\n".join(flags),
    )


def _fish() -> str:
    lines = [SCRIPTS["fish"].rstrip()]

    def complete(condition: str, rest: str, about: str):
        lines.append(f"complete -c sora-jax -n {shlex.quote(condition)} {rest} -d {shlex.quote(about)}")

    for word, about in _first_words().items():
        complete("__sora_jax_at", f"-a {word}", about)
    for first, words in _second_words().items():
        for word, about in words.items():
            complete(f"__sora_jax_at {first}", f"-a {word}", about)
    for name, command in _commands().items():
        for flag, meaning, takes, known in _flags(command):
            value = f"-x -a {shlex.quote(' '.join(known))}" if known else "-r -F" if takes else ""
            complete(f"__sora_jax_is {name}", f"-l {flag} {value}".rstrip(), meaning)
    return "\n".join(lines) + "\n"


def _print_script(values, console, *, shell: str):
    # To standard output: a shell reads it.
    print(script(shell), end="")


def _command(shell: str, use: str) -> Command:
    return Command(
        f"nothing -> completion of commands and flags for {shell}",
        {},
        functools.partial(_print_script, shell=shell),
        about=f"To have it in every new shell: {use}",
        examples=("",),
    )


BASH = _command("bash", 'add the line eval "$(sora-jax completion bash)" to ~/.bashrc.')
ZSH = _command("zsh", 'add the line eval "$(sora-jax completion zsh)" to ~/.zshrc, after compinit.')
FISH = _command("fish", "sora-jax completion fish > ~/.config/fish/completions/sora-jax.fish")
