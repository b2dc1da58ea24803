"""Notes are c2sp.org/signed-note's: what others signed verifies, what is not canonical or not genuine is refused."""

from __future__ import annotations

import base64
import contextlib
import hashlib
import itertools

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from hypothesis import given, settings
from hypothesis import strategies as hs

from controlplane.ledger.note import (
    Note,
    NoteError,
    Signature,
    Signer,
    Verified,
    Verifier,
    derive,
    parse_note,
    parse_signature,
    verify,
)

UNHURRIED = settings(deadline=None)  # a loaded machine is no failure

# c2sp.org/signed-note, "Example"
FOO = "example.com/foo+530d903a+AekyeRrm56hApGFkyQR4ZCbV54Id2LKaANYcrnKv3U2k"
FOO_NOTE = """\
This is an example message.

— example.com/foo Uw2QOkn8srV1yJGh2VYRlL1Tnagv1YEq6TfXppzi2ONncAlTgK7Ztg1ERYNZXsYjOBH3mFXmRKuwHjG1Yu72IneyaQM=
"""
# golang.org/x/mod, sumdb/note/note_test.go
PETER_SEED = base64.b64decode("AYEKFALVFGyNhPJEMzD1QIDr+Y7hfZx09iUvxdXHKDFz")[1:]
PETER = "PeterNeumann+c74f20a3+ARpc2QcUPDhMQegwxbzhKqiBfsVkmqq/LDE4izWy10TW"
ENOCH = "EnochRoot+af0cfe78+ATtqJ7zOtqQtYqOo0CpvDXNlMhV3HeJDpjrASKGLWdop"
TEXT = "If you think cryptography is the answer to your problem,\nthen you don't know what your problem is.\n"
PETER_LINE = (
    "— PeterNeumann x08go/ZJkuBS9UG/SffcvIAQxVBtiFupLLr8pAcElZInNIuGUgYN1FFYC2pZSNXgKvqfqdngotpRZb6KE6RyyBwJnAM=\n"
)
ENOCH_LINE = (
    "— EnochRoot rwz+eBzmZa0SO3NbfRGzPCpDckykFXSdeX+MNtCOXm2/5n2tiOHp+vAF1aGrQ5ovTG01oOTGwnWLox33WWd1RvMc+QQ=\n"
)
# c2sp.org/tlog-cosignature, the note in the introduction. Its public keys are not published: form only.
COSIGNED = """\
example.com/behind-the-sofa
20852163
CsUYapGGPo4dkMgIAUqom/Xajj7h2fB2MPA3j2jxq2I=

— example.com/behind-the-sofa Az3grlgtzPICa5OS8npVmf1Myq/5IZniMp+ZJurmRDeOoRDe4URYN7u5/Zhcyv2q1gGzGku9nTo+zyWE+xeMcTOAYQ8=
— witness.example.com/w1 jWbPPwAAAABkGFDLEZMHwSRaJNiIDoe9DYn/zXcrtPHeolMI5OWXEhZCB9dlrDJsX3b2oyin1nPZqhf5nNo0xUe+mbIUBkBIfZ+qnA==
"""

LOG = Signer.log("example.com/ledger/fra/2026q4", derive(bytes(32), "log"))
WITNESS = Signer.cosigner("example.com/ledger/iad/witness", derive(bytes(range(32)), "witness"))
BOTH = [LOG.verifier, WITNESS.verifier]


def note(*signatures: Signature, text: str = TEXT) -> Note:
    return Note(text, signatures)


class TestVectors:
    """Notes and keys that other programs made."""

    def test_signed_note(self):
        parsed = parse_note(FOO_NOTE)
        assert verify(parsed, [Verifier.parse(FOO)]) == [Verified("example.com/foo", None)]
        assert str(parsed) == FOO_NOTE
        assert Verifier.parse(FOO).vkey == FOO

    def test_sumdb_signs_the_same(self):
        signer = Signer.log("PeterNeumann", Ed25519PrivateKey.from_private_bytes(PETER_SEED))
        assert signer.vkey == PETER
        assert str(note(signer.sign(TEXT))) == f"{TEXT}\n{PETER_LINE}"

    def test_sumdb_opens_the_same(self):
        both = parse_note(f"{TEXT}\n{PETER_LINE}{ENOCH_LINE}".encode())
        peter, enoch = Verifier.parse(PETER), Verifier.parse(ENOCH)
        assert verify(both, [peter]) == [Verified("PeterNeumann", None)]
        assert verify(both, [enoch, peter]) == [Verified("PeterNeumann", None), Verified("EnochRoot", None)]
        with pytest.raises(NoteError, match="no signature by a known key"):
            verify(both, [])
        with pytest.raises(NoteError, match="PeterNeumann does not hold"):
            verify(parse_note(f"{TEXT.upper()}\n{PETER_LINE}"), [peter, enoch])
        with pytest.raises(NoteError, match="101 signatures"):
            parse_note(f"{TEXT}\n{PETER_LINE * 101}")
        assert len(parse_note(f"{TEXT}\n{PETER_LINE * 100}").signatures) == 100

    def test_cosigned_checkpoint(self):
        parsed = parse_note(COSIGNED)
        assert [(s.name, len(s.blob)) for s in parsed.signatures] == [
            ("example.com/behind-the-sofa", 64),
            ("witness.example.com/w1", 72),
        ]
        assert int.from_bytes(parsed.signatures[1].blob[:8], "big") == 1679315147  # the time that the text names
        assert str(parsed) == COSIGNED

    def test_a_key_id_is_a_hash_of_name_type_and_key(self):
        for signer, kind in ((LOG, 1), (WITNESS, 4)):
            made = hashlib.sha256(f"{signer.name}\n".encode() + bytes([kind]) + signer.verifier.public)
            assert signer.key_id == made.digest()[:4]


class TestVerify:
    """Only a genuine signature of a known key counts."""

    def test_a_cosignature_says_when(self):
        both = parse_note(str(note(LOG.sign(TEXT), WITNESS.cosign(TEXT, 1_790_000_000))))
        assert verify(both, BOTH) == [Verified(LOG.name, None), Verified(WITNESS.name, 1_790_000_000)]

    def test_another_time_is_another_statement(self):
        made = WITNESS.cosign(TEXT, 1_790_000_000)
        later = made._replace(blob=(1_790_000_001).to_bytes(8, "big") + made.blob[8:])
        with pytest.raises(NoteError, match="does not hold"):
            verify(note(LOG.sign(TEXT), later), BOTH)

    def test_no_clock_shows_that_time(self):
        made = WITNESS.cosign(TEXT, 2**63)
        with pytest.raises(NoteError, match="which no clock shows"):
            verify(note(made), BOTH)

    def test_a_wrong_signature_of_a_known_key_rejects_the_note_and_that_of_an_unknown_one_does_not(self):
        wrong = WITNESS.cosign("another\n", 1)
        with pytest.raises(NoteError):
            verify(note(LOG.sign(TEXT), wrong), BOTH)
        assert verify(note(LOG.sign(TEXT), wrong), [LOG.verifier]) == [Verified(LOG.name, None)]

    def test_the_same_key_counts_once(self):
        assert verify(note(LOG.sign(TEXT), LOG.sign(TEXT)), BOTH) == [Verified(LOG.name, None)]
        with pytest.raises(NoteError):
            verify(note(LOG.sign(TEXT), LOG.sign("another\n")), BOTH)

    def test_a_name_or_an_id_alone_is_no_match(self):
        made = LOG.sign(TEXT)
        for other in (made._replace(name="example.com/other"), made._replace(key_id=b"\0\0\0\0")):
            with pytest.raises(NoteError, match="no signature by a known key"):
                verify(note(other), BOTH)

    def test_two_keys_of_one_name_and_id_are_ambiguous(self):
        other = LOG.verifier._replace(public=WITNESS.verifier.public)
        with pytest.raises(NoteError, match="share the name"):
            verify(note(LOG.sign(TEXT)), [LOG.verifier, other])

    def test_a_signers_purpose_is_fixed(self):
        with pytest.raises(TypeError):
            WITNESS.sign(TEXT)
        with pytest.raises(TypeError):
            LOG.cosign(TEXT, 1)

    @pytest.mark.parametrize("text", ["no newline", "tab\t\n", "\x00\n", ""])
    def test_what_no_note_can_hold_is_not_signed(self, text):
        with pytest.raises(NoteError):
            LOG.sign(text)

    @UNHURRIED
    @given(hs.integers(0, 10**6), hs.integers(0, 7))
    def test_a_flipped_bit_is_never_accepted(self, at, bit):
        wire = bytearray(str(note(LOG.sign(TEXT), WITNESS.cosign(TEXT, 1_790_000_000))).encode())
        wire[at % len(wire)] ^= 1 << bit
        try:
            verified = verify(parse_note(bytes(wire)), BOTH)
        except NoteError:
            return
        assert len(verified) == 1  # the other one's name or id is flipped: an unknown key


GOOD = f"{TEXT}\n{PETER_LINE}"


class TestParse:
    """A note has one spelling."""

    @pytest.mark.parametrize(
        "wire",
        [
            *("", "\n", "\n\n", "text", "text\n", TEXT, f"{TEXT}\n", f"{TEXT}\n\n", f"{TEXT}{PETER_LINE}"),
            GOOD[:-1],
            GOOD + "\n",
            GOOD.replace("— ", "- "),
            GOOD.replace("— ", "—"),
            GOOD.replace("— ", "—  "),
            GOOD.replace("PeterNeumann x", "PeterNeumann  x"),
            GOOD.replace("PeterNeumann x", "PeterNeumannx"),
            GOOD.replace("PeterNeumann", "Peter+Neumann"),
            GOOD.replace("PeterNeumann", "Peter\u00a0Neumann"),
            GOOD.replace("PeterNeumann", "Peter\u2028Neumann"),
            GOOD.replace("PeterNeumann ", " "),
            GOOD.replace("PeterNeumann", "P" * 257),
            GOOD.replace("nAM=", "nAM"),
            GOOD.replace("nAM=", "nAN="),  # the same bytes for a lenient decoder
            GOOD.replace("nAM=", "nA M="),
            GOOD.replace("nAM=\n", "nAM=\r\n"),
            GOOD.replace("nAM=", "nAM=="),
            GOOD.replace("x08go/", "x08go_"),
            f"{TEXT}\n— PeterNeumann x08go/==\n",
            f"{TEXT}\n— PeterNeumann \n",
            GOOD.replace("think", "th\tink"),
            GOOD.replace("think", "th\x00ink"),
            GOOD.replace("think", "th\rink"),
            GOOD.replace("think", "th\ud800ink"),
            GOOD.encode().replace(b"think", b"th\xffink"),
            GOOD.encode("utf-16"),
            TEXT * 11_000 + GOOD,
        ],
        ids=itertools.count(),
    )
    def test_refused(self, wire):
        with pytest.raises(NoteError):
            parse_note(wire)

    def test_the_last_empty_line_separates(self):
        parsed = parse_note(f"a\n\nb\n\n{PETER_LINE}")
        assert parsed.text == "a\n\nb\n"

    @UNHURRIED
    @given(hs.text(max_size=60) | hs.binary(max_size=60))
    def test_nothing_but_a_note_error(self, data):
        for wire in (data, GOOD[:100] + data if isinstance(data, str) else GOOD.encode()[:150] + data):
            try:
                parsed = parse_note(wire)
            except NoteError:
                continue
            assert str(parsed) == (wire if isinstance(wire, str) else wire.decode())

    @UNHURRIED
    @given(hs.text(max_size=80))
    def test_nothing_but_a_note_error_of_a_line_or_a_key(self, text):
        for parse, start in ((parse_signature, "— a "), (Verifier.parse, "a+"), (Verifier.parse, PETER[:20])):
            for data in (text, start + text):
                with contextlib.suppress(NoteError):
                    parse(data)

    @pytest.mark.parametrize(
        "vkey",
        [
            *("", "a", "a+b", "++", FOO[:-1], FOO + "=", FOO.replace("530d903a", "530D903A"), FOO.replace("530d903a", "530d903b")),
            FOO.replace("example.com/foo", "example.com/bar"),
            FOO.replace("+Aeky", "+Beky"),
            f" {FOO}",
            f"{FOO}\n",
            FOO.replace("example.com/foo", "example.com/\ud800"),
            "a+" + hashlib.sha256(b"a\n\x02" + bytes(32)).hexdigest()[:8] + "+" + base64.b64encode(b"\x02" + bytes(32)).decode(),
            "a+" + hashlib.sha256(b"a\n\x01" + b"\xff" * 32).hexdigest()[:8] + "+" + base64.b64encode(b"\x01" + b"\xff" * 32).decode(),
        ],
        ids=itertools.count(),
    )  # fmt: skip
    def test_keys_refused(self, vkey):
        with pytest.raises(NoteError):
            Verifier.parse(vkey)


class TestDerive:
    """One secret, a key for each role, the same after each start."""

    def test_roles_have_different_keys_and_keep_them(self):
        made = {
            role: derive(b"\x07" * 32, role).public_key().public_bytes_raw() for role in ("log", "witness", "mirror")
        }
        assert len(set(made.values())) == 3
        assert derive(b"\x07" * 32, "log").public_key().public_bytes_raw() == made["log"]

    @pytest.mark.parametrize("size", [0, 31, 33, 64])
    def test_a_short_or_long_secret_is_refused(self, size):
        with pytest.raises(ValueError, match="32"):
            derive(bytes(size), "log")
