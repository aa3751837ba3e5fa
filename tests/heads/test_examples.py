"""Every public name of the wheel has an example in its docstring, which runs."""

import doctest
import functools

import pytest
import torch

import heads


@pytest.mark.parametrize("name", heads.__all__)
def test_the_example_of_a_public_name_runs(name):
    """Examples use the public names, torch and functools, as a user would who has imported them."""
    torch.manual_seed(0)
    names = {each: getattr(heads, each) for each in heads.__all__}
    text = getattr(heads, name).__doc__ or ""
    example = doctest.DocTestParser().get_doctest(
        text, {**names, "torch": torch, "functools": functools}, name, None, 0
    )
    assert example.examples, f"{name} has no example"
    said: list[str] = []
    failed, _ = doctest.DocTestRunner(verbose=False).run(example, out=said.append)
    assert not failed, "".join(said)
