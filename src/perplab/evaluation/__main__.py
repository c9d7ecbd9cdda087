"""`python -m perplab.evaluation`: the command of lm-evaluation-harness, with perplab among its models.

lm-eval releases up to 0.4.13 know no models but their own until somebody has imported them.
"""

from lm_eval.__main__ import cli_evaluate

import perplab.evaluation.harness  # noqa: F401 (registers the model)

if __name__ == "__main__":
    cli_evaluate()
