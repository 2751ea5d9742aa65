"""The commands of `posttrain`, for dispatch, help and completion."""

# Command -> what it does, and where it is: a module with `main(argv) -> exit code`, or a job that a recipe runs.
COMMANDS = {
    "train": ("train a recipe, or a model and data of your own; the default", "job:"),
    "recipes": ("list the recipes; `posttrain recipes NAME` prints one, composed", "posttrain.config.recipe_list"),
    "doctor": ("check the data before training: duplicates, leaks, length bias", "job:doctor"),
    "sample": ("draw completions of a model or run, score and select them as data", "job:sample"),
    "evaluate": ("held-out metrics of a model or run with confidence intervals", "job:evaluate"),
    "chat": ("talk to a run or a model, or to two side by side", "posttrain.chat"),
    "report": ("compare runs: table, verdict and one HTML page", "posttrain.report.__main__"),
    "export": ("adapter or merged model, ready for use elsewhere", "posttrain.export"),
    "annotate": ("collect preferences from people in the browser", "posttrain.annotate.__main__"),
    "completion": ("print the completion script of a shell: bash, zsh or fish", "posttrain.config.completion"),
}
