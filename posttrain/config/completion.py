"""Completion for shells: `posttrain completion bash|zsh|fish` prints the script, which asks this module at each Tab."""

import argparse
from collections.abc import Iterable, Iterator

from posttrain.config import recipe_list, recipes
from posttrain.config.commands import COMMANDS

# Bash's COMP_WORDBREAKS holds "=", so it completes only the part behind it: the script cuts off the part before it.
SCRIPTS = {
    "bash": """_posttrain() {
  local line="${COMP_LINE:0:COMP_POINT}"
  local word="${line##* }"
  local cut=""
  [[ "$word" == *=* && "$COMP_WORDBREAKS" == *=* ]] && cut="${word%"${word##*=}"}"
  local -a words
  read -ra words <<< "$line"
  mapfile -t COMPREPLY < <(posttrain completion --words "${words[@]}" ${word:+--last} 2>/dev/null)
  COMPREPLY=("${COMPREPLY[@]#"$cut"}")
  [[ "${COMPREPLY[0]}" == */ || "${COMPREPLY[0]}" == *= || "${COMPREPLY[0]}" == *. ]] && compopt -o nospace
}
complete -o default -F _posttrain posttrain""",
    "zsh": """#compdef posttrain
_posttrain() {
  local line="${BUFFER[1,CURSOR]}"
  local word="${line##* }"
  local -a found
  found=(${(f)"$(posttrain completion --words ${(z)line} ${word:+--last} 2>/dev/null)"})
  compadd -S '' -- ${(M)found:#*[=./]}
  compadd -- ${found:#*[=./]}
  (( ${#found} )) || _files
}
compdef _posttrain posttrain""",
    "fish": """function __posttrain_words
  set -l word (commandline -ct)
  posttrain completion --words (commandline -opc) $word (test -n "$word"; and echo -- --last) 2>/dev/null
end
complete -c posttrain -a '(__posttrain_words)'""",
}
USE = {
    "bash": 'eval "$(posttrain completion bash)"',
    "zsh": 'eval "$(posttrain completion zsh)"',
    "fish": "posttrain completion fish | source",
}
# Settings that are typed most, besides the groups.
KEYS = (
    *("data.path=", "data.eval_path=", "data.max_train_rows=", "dry_run=true", "model.path=", "model.init_from="),
    *("name=", "output_dir=", "objective=", "peft.lora.r=", "probe.every=", "trainer.args."),
)


def main(argv: list[str]) -> int:
    """Print the script of a shell, or, as that script asks, the candidates for the word being typed."""
    if argv[:1] == ["--words"]:
        typed = argv[2:]  # without "posttrain"
        last = typed.pop() == "--last" if typed and typed[-1] == "--last" else False
        print("\n".join(candidates(typed[:-1], typed[-1]) if last else candidates(typed, "")))
        return 0
    examples = "\n".join(f"  {line}" for line in USE.values())
    parser = argparse.ArgumentParser(
        prog="posttrain completion",
        description="Print the completion script of a shell.",
        epilog=f"Put one of these lines into the start-up file of your shell:\n{examples}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("shell", choices=tuple(SCRIPTS))
    print(SCRIPTS[parser.parse_args(argv).shell])
    return 0


def candidates(before: list[str], word: str) -> list[str]:
    """What `word` may become after the words `before`."""
    return sorted({one for one in _all(before, word) if one.startswith(word)})


def _all(before: list[str], word: str) -> Iterator[str]:
    command = before[0] if before and before[0] in COMMANDS else "train"
    if not before:
        yield from COMMANDS
        yield from ("--help", "--version")
    if command == "recipes":
        yield from recipe_list.purposes()
    elif command == "completion":
        yield from SCRIPTS
    elif command in ("chat", "report", "export", "annotate"):
        return  # paths: the shell's own
    elif word.startswith("trainer.args."):
        yield from (f"trainer.args.{name}=" for name in _options(before))
    else:
        yield from (f"+recipe={name}" for name in recipe_list.purposes())
        yield from (f"{group}={option}" for group, names in recipes.groups().items() for option in names)
        yield from KEYS


def _options(before: Iterable[str]) -> Iterable[str]:
    """The options of the trainer that the words choose, or else those that every trainer has."""
    from posttrain.config import trainers
    from posttrain.config.options import options_of

    known = {word.removeprefix("trainer=") for word in before if word.startswith("trainer=")}
    known |= {word.removeprefix("+recipe=").split("_")[0] for word in before if word.startswith("+recipe=")}
    kind = next((kind for name in sorted(known) if (kind := trainers.find(name))), None)
    return options_of(kind.config if kind else "transformers.TrainingArguments")
