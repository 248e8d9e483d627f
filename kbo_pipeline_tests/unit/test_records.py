"""Records are counted as a reader that goes byte by byte would, however the bytes are cut."""

from hypothesis import example, given, settings
from hypothesis import strategies as st

from kbo_pipeline.stage.unpack import Counted, RecordCounter

BOM = b"\xef\xbb\xbf"
PIECES = (
    *(b'"', b'""', b",", b"\n", b"\r\n", b"\r", b"a", b"\xc3\xa9", b"\xff", b"\0"),
    *(b'"x"', b'",', b',"', b'"a","b"\n', b'a,"b""c\n,"\n', b'"x"\r\n', b"abc" * 30, b'"' * 7),
)


def counted(data: bytes, cuts: list[int]) -> Counted:
    """Counts bytes that come in chunks of so many times 64, and then the rest."""
    counter, chunks, at = RecordCounter(), [], 0
    for cut in cuts:
        chunks.append(data[at : at + 64 * cut])
        at += 64 * cut
    chunks.append(data[at:])
    handed_on = b"".join(counter.counted(chunk for chunk in chunks if chunk))
    assert handed_on == data
    return counter.result()


def byte_by_byte(data: bytes) -> Counted:
    """The same in plain Python, from RFC 4180."""
    text = data.removeprefix(BOM)
    regular, inside, closed = b"\0" not in text and is_utf8(data), False, False
    records = separators = feeds = returns = at = 0
    begins_field = begins_record = True
    while at < len(text):
        byte, after = text[at : at + 1], text[at + 1 : at + 2]
        at += 1
        if inside:
            if byte == b'"' and after == b'"':
                at += 1
            elif byte == b'"':
                inside, closed = False, True
            continue
        regular &= not closed or byte in b",\n\r"
        closed = False
        if byte == b'"':
            regular &= begins_field
            inside = True
        elif byte == b"\n":
            regular &= not begins_record
            records, feeds = records + 1, feeds + 1
        elif byte == b"\r" and after == b"\n":
            returns += 1
            continue
        elif byte == b"\r":
            regular = False
        separators += byte == b","
        begins_field, begins_record = byte in b",\n", byte == b"\n"
    records += bool(text) and (inside or not text.endswith(b"\n"))
    regular &= not inside and returns in (0, feeds)
    return Counted(records, separators, bool(regular))


def is_utf8(data: bytes) -> bool:
    try:
        data.decode()
    except UnicodeDecodeError:
        return False
    return True


@settings(max_examples=1500, deadline=None)
@given(
    pieces=st.lists(st.sampled_from(PIECES), max_size=60),
    bom=st.sampled_from([b"", BOM + b"a,"]),
    cuts=st.lists(st.integers(1, 3), max_size=4),
)
@example(pieces=[b"x" * 63, b'"'], bom=b"", cuts=[1])
@example(pieces=[b'"', b"x" * 62, b'"', b'"y"\n'], bom=b"", cuts=[1])
@example(pieces=[b"x" * 63, b"\r", b"\n"], bom=b"", cuts=[1])
@example(pieces=[b"x" * 63, b"\xc3", b"\xa9"], bom=b"", cuts=[1])
@example(pieces=[b"x" * 63, b"\n", b"\n"], bom=b"", cuts=[1])
@example(pieces=[], bom=b"", cuts=[])
def test_the_counter_sees_what_a_reader_byte_by_byte_sees(
    pieces: list[bytes], bom: bytes, cuts: list[int]
) -> None:
    data = bom + b"".join(pieces)
    found, expected = counted(data, cuts), byte_by_byte(data)
    assert found.is_regular == expected.is_regular
    if expected.is_regular:
        assert found == expected
