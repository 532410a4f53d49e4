"""A policy of the user's own: a Python function, by its name."""

import numpy as np

from cit_curate.curation.policies.decision import Candidates, Decision, Policy
from cit_curate.errors import ConfigError
from cit_curate.own_functions import own_function

OWN = "policy"


def load_policy(name: str) -> Policy:
    """The policy `package.module:function` or `file.py:function`.

    The function gets the candidates and the decision so far. It returns another decision; or bool
    [batch], the captions that may be kept; or float32 [batch], the rank to choose the best by.

    Raises:
        ConfigError: There is no such function.
    """
    function = own_function(name, flag="--policy")

    def policy(candidates: Candidates, decision: Decision) -> Decision:
        result = function(candidates, decision)
        if isinstance(result, Decision):
            return result
        values = np.asarray(result)
        if values.shape != (len(candidates),):
            raise ConfigError(
                f"--policy {name} returned values of shape {values.shape} for "
                f"{len(candidates)} captions; it returns a decision, or one value a caption"
            )
        if values.dtype == np.bool_:
            return decision.leave_out(~values, OWN)
        return decision.ranked(values.astype(np.float32))

    return policy
