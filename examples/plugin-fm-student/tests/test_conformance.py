from recdistill_core.testing import conformance


@conformance("recdistill-fm")
def test_conformance(check):
    check()
