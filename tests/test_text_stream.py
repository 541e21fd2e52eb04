import pytest

from kormed_edge.text_stream import TextStream


def test_syllable_waits_for_its_last_byte() -> None:
    stream = TextStream()
    first, *_, last = "심".encode()
    middle = "심".encode()[1:2]
    assert [stream.push(bytes([first])), stream.push(middle), stream.push(bytes([last]))] == [
        "",
        "",
        "심",
    ]
    assert stream.finish() == ""


def test_syllable_that_never_ends_becomes_the_replacement_character() -> None:
    stream = TextStream()
    assert stream.push("심전".encode()[:-1]) == "심"
    assert stream.finish() == "\N{REPLACEMENT CHARACTER}"


@pytest.mark.parametrize("size", [1, 2, 3, 100])
def test_stop_string_and_what_follows_never_go_out(size: int) -> None:
    stream, data, text = TextStream(("끝.", "END")), "심전도 E 끝.더".encode(), ""
    for at in range(0, len(data), size):
        if not stream.stopped:
            text += stream.push(data[at : at + size])
    assert (text + stream.finish(), stream.stopped) == ("심전도 E ", True)


def test_text_that_only_began_like_a_stop_string_goes_out() -> None:
    stream = TextStream(("\n\n",))
    assert [stream.push(b"a\n"), stream.push(b"b\n"), stream.finish()] == ["a", "\nb", "\n"]
    assert not stream.stopped


def test_first_of_two_stop_strings_counts() -> None:
    stream = TextStream(("c", "b"))
    assert stream.push(b"abc") == "a"
