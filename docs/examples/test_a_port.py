"""The same pair in a test suite of your own, with the pytest plugin.

python -m pytest docs/examples/test_a_port.py --parity-report report.html
"""

from compare_a_pair import IMAGES, NAMES, original, port


def test_the_port_gives_the_same_numbers(parity):
    reference = original()
    parity.assert_same(reference, port(reference, epsilon=1e-5), IMAGES, names=NAMES)
