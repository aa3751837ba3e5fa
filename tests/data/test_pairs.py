"""Lists of pairs."""

import pytest

from data.pairs import read_pairs


def test_pairs_of_a_list(tmp_path):
    path = tmp_path / "pairs.txt"
    path.write_bytes("a.jpg\tb c.jpg\t1\r\n\nd/猫.jpg\t/abs/e.jpg\t0\nf\tg\ttrue\n".encode())
    pairs = read_pairs(path)
    assert len(pairs) == 3 and pairs.same.tolist() == [True, False, True]
    assert pairs.paths(0) == (str(tmp_path / "a.jpg"), str(tmp_path / "b c.jpg"))
    assert pairs.paths(1) == (str(tmp_path / "d" / "猫.jpg"), "/abs/e.jpg")
    assert read_pairs(path, root="/images").paths(2) == ("/images/f", "/images/g")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "there is no pair in it"),
        ("a\tb\t1\na b 1\n", "line 2: two paths and 1 or 0"),
        ("a\tb\tmaybe\n", "line 1: .*'a\\\\tb\\\\tmaybe'"),
        ("a\tb\n", "line 1"),
    ],
)
def test_lists_that_are_none(content, message, tmp_path):
    path = tmp_path / "pairs.txt"
    path.write_text(content)
    with pytest.raises(ValueError, match=f"{path}.*{message}"):
        read_pairs(path)
    with pytest.raises(ValueError, match="no such list of pairs"):
        read_pairs(tmp_path / "nowhere")
