"""What a bare `mlflow run .` does: says what there is."""

import click

from entrypoints.output import enduring_output

TEXT = """\
pose trains seed ensembles of image classifiers. Entry points of this project:

  mlflow run . -e data -P command=check          look at ./dataset
  mlflow run . -e train -P run=ensemble_1        train a named run
  mlflow run . -e train -P run=demo -P dataset=demo    train on drawn poses
  mlflow run . -e ensemble -P run=ensemble_1     vote, write predictions.csv
  mlflow run . -e sweep -P run=demo -P space=learning_rate:1e-3..1e-2:log    try other values
  mlflow run . -e runs                           what there is, and what to type next
  mlflow run . -e predict -P model=models:/pose-ensemble/1 -P images=photos    predict files
  mlflow run . -e serve -P model=models:/pose-ensemble/1      a page to drop images on
  mlflow run . -e import -P archive=old -P dataset=my_data     folders of the original's layout
  mlflow run . -e sync                           send what waits for the tracking server
  mlflow ui                                      compare the seeds

Each is also python -m entrypoints.<name>, with --help. The named runs:
"""


def main() -> None:
    """Print the entry points and the named runs."""
    from entrypoints.train import list_runs

    click.echo(TEXT)
    click.echo(list_runs())


if __name__ == "__main__":
    with enduring_output():
        main()
