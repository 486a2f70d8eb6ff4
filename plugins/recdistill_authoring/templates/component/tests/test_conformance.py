from recdistill_core.testing import conformance


@conformance("recdistill-my-plugin")
def test_conformance(check):
    check()
