"""Published numbers through the reference engine, and the checker of the files that hold them."""

from __future__ import annotations

import copy
import importlib.util
import json
from importlib.machinery import SourceFileLoader
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from virtio_ipsec.crypto.aeads import NonceAead
from virtio_ipsec.crypto.algorithms import Protocol, by_name
from virtio_ipsec.crypto.macs import MACS
from virtio_ipsec.crypto.reference import ah_transform, esp_transform
from virtio_ipsec.errors import IntegrityError
from virtio_ipsec.wire.numbers import AeadAlgo, MacAlgo

ROOT = Path(__file__).resolve().parents[2]
VECTORS = ROOT / "tests" / "vectors"
MAC_IDS = {
    "hmac-sha1": (MacAlgo.HMAC_SHA1, "hmac-sha1-96"),
    "hmac-sha2-256": (MacAlgo.HMAC_SHA_256, "hmac-sha2-256-128"),
    "aes-cmac": (MacAlgo.CMAC_AES, "aes-cmac-96"),
    "aes-xcbc": (MacAlgo.XCBC_AES, "aes-xcbc-96"),
}
AEAD_IDS = {"aes-gcm": AeadAlgo.GCM, "chacha20-poly1305": AeadAlgo.CHACHA20_POLY1305}


def load(name: str) -> Any:
    return json.loads((VECTORS / f"{name}.json").read_text())


def cases(name: str) -> list[Any]:
    return [pytest.param(t, id=f"{t['tcId']}: {t['source']}") for t in load(name)["tests"]]


def octets(test: dict[str, Any], *fields: str) -> list[bytes]:
    return [bytes.fromhex(test[field]) for field in fields]


def flipped(data: bytes, position: int) -> bytes:
    return data[:position] + bytes([data[position] ^ 1]) + data[position + 1 :]


@pytest.mark.parametrize("test", [c for c in cases("esp_packets") if c.values[0]["icv"]])
def test_published_esp_packet_is_sealed_and_opened(test: dict[str, Any]) -> None:
    header = bytes.fromhex(test["spi"] + test["seq"])
    seq_hi = bytes.fromhex(test["seq_hi"]) or None
    cipher_key, auth_key, salt, iv, plaintext = octets(
        test, "cipher_key", "auth_key", "salt", "iv", "plaintext"
    )
    body = bytes.fromhex(test["ciphertext"] + test["icv"])
    transform = esp_transform(by_name(test["suite"]), cipher_key, auth_key, salt)
    assert transform.seal(header, seq_hi, iv, plaintext) == body
    assert transform.open(header, seq_hi, iv, body) == plaintext
    assert header + iv + body == bytes.fromhex(test["packet"])
    for position in range(len(body)):
        with pytest.raises(IntegrityError):
            transform.open(header, seq_hi, iv, flipped(body, position))


@pytest.mark.parametrize("test", [c for c in cases("esp_packets") if not c.values[0]["icv"]])
@pytest.mark.parametrize("mac", ["hmac-sha1-96", "aes-xcbc-96"])
def test_published_unauthenticated_packet_has_our_ciphertext(test: dict[str, Any], mac: str) -> None:
    suite = by_name(f"{test['suite']}+{mac}")
    (auth_len,) = suite.auth_key_lens
    header, key, iv, plaintext, ciphertext = octets(
        test, "spi", "cipher_key", "iv", "plaintext", "ciphertext"
    )
    header += bytes.fromhex(test["seq"])
    transform = esp_transform(suite, key, bytes(auth_len), bytes(4))
    body = transform.seal(header, None, iv, plaintext)
    assert body[: -suite.icv_len] == ciphertext
    assert transform.open(header, None, iv, body) == plaintext


@pytest.mark.parametrize("test", cases("macs"))
def test_published_mac(test: dict[str, Any]) -> None:
    key, message, tag = octets(test, "key", "message", "tag")
    algorithm, ah_name = MAC_IDS[test["algorithm"]]
    assert MACS[algorithm](key).tag(message) == tag
    suite = by_name(ah_name, Protocol.AH)
    if len(key) in suite.auth_key_lens:
        transform = ah_transform(suite, key, bytes(4))
        assert transform.icv(message) == tag[: suite.icv_len]
        transform.verify(message, tag[: suite.icv_len])


def test_every_ah_mac_has_a_published_result_with_its_ipsec_key_length() -> None:
    seen = {t["algorithm"] for t in load("macs")["tests"] if len(t["key"]) // 2 in {16, 20, 32}}
    assert seen == set(MAC_IDS)


@pytest.mark.parametrize("test", [c for c in cases("ciphers") if c.values[0]["algorithm"] == "aes-ctr"])
def test_published_counter_mode_result(test: dict[str, Any]) -> None:
    key, salt, iv, plaintext, ciphertext = octets(test, "key", "salt", "iv", "plaintext", "ciphertext")
    transform = esp_transform(by_name("aes-ctr+hmac-sha1-96"), key, bytes(20), salt)
    body = transform.seal(bytes(8), None, iv, plaintext)
    assert body[:-12] == ciphertext
    assert transform.open(bytes(8), None, iv, body) == plaintext


@pytest.mark.parametrize("test", [c for c in cases("ciphers") if c.values[0]["algorithm"] in AEAD_IDS])
def test_published_aead_result(test: dict[str, Any]) -> None:
    key, salt, iv, plaintext, aad = octets(test, "key", "salt", "iv", "plaintext", "aad")
    sealed = bytes.fromhex(test["ciphertext"] + test["tag"])
    aead = NonceAead(AEAD_IDS[test["algorithm"]], key, salt)
    assert aead.encrypt(iv, plaintext, aad) == sealed
    assert aead.decrypt(iv, sealed, aad) == plaintext
    with pytest.raises(IntegrityError):
        aead.decrypt(iv, flipped(sealed, len(sealed) - 1), aad)


# The checker itself


@pytest.fixture(scope="module")
def tool() -> ModuleType:
    loader = SourceFileLoader("make_vectors", str(ROOT / "tools" / "make_vectors"))
    spec = importlib.util.spec_from_loader("make_vectors", loader)
    assert spec is not None
    module = importlib.util.module_from_spec(spec)
    loader.exec_module(module)
    return module


def test_the_vector_files_are_in_order(tool: ModuleType, capsys: pytest.CaptureFixture[str]) -> None:
    assert tool.main([]) == 0
    assert capsys.readouterr().out.count(" 0 problems") == len(list(VECTORS.glob("*.json"))) == 3


def damage(document: Any, what: str) -> None:
    test = document["tests"][-1]
    match what:
        case "packet":
            test["packet"] = "ff" + test["packet"][2:]
        case "plaintext":
            test["plaintext"] = test["plaintext"][2:]
        case "padding":
            test["padding"] = "ff" + test["padding"][2:]
        case "hex":
            test["iv"] = test["iv"].upper() + "g"
        case "flag":
            test["flags"] = [*test["flags"], "Unknown"]
        case "icv flag":
            test["flags"] = []
        case "source":
            test["source"] = "hearsay"
        case "unused source":
            document["sources"].append({"name": "RFC 0"})
        case "suite":
            del test["suite"]
        case "count":
            document["numberOfTests"] += 1
        case "tcId":
            test["tcId"] += 1
        case "header":
            document["extra"] = 1


@pytest.mark.parametrize(
    "what",
    [
        "packet", "plaintext", "padding", "hex", "flag", "icv flag", "source", "unused source",
        "suite", "count", "tcId", "header",
    ],
)  # fmt: skip
def test_the_checker_finds_a_damaged_file(tool: ModuleType, what: str) -> None:
    document = load("esp_packets")
    intact = copy.deepcopy(document)
    assert list(tool.check_document(intact)) == []
    damage(document, what)
    assert list(tool.check_document(document))


def wycheproof_document(*tests: dict[str, Any], iv: int = 96) -> dict[str, Any]:
    group = {
        "ivSize": iv,
        "keySize": 128,
        "tagSize": 128,
        "tests": [{"flags": ["Ktv"], "comment": "", **t} for t in tests],
    }
    return {"testGroups": [group]}


def gcm_in_wycheproof_form(**changes: str) -> dict[str, Any]:
    source = next(t for t in load("ciphers")["tests"] if t["source"].endswith("test case 4"))
    test = {
        "tcId": 1, "key": source["key"], "iv": source["salt"] + source["iv"], "aad": source["aad"],
        "msg": source["plaintext"], "ct": source["ciphertext"], "tag": source["tag"], "result": "valid",
    }  # fmt: skip
    return {**test, **changes}


@pytest.mark.parametrize(
    ("test", "status"),
    [
        (gcm_in_wycheproof_form(), 0),
        (gcm_in_wycheproof_form(tag="00" * 16, result="invalid"), 0),
        (gcm_in_wycheproof_form(result="invalid"), 1),
        (gcm_in_wycheproof_form(tag="00" * 16), 1),
        (gcm_in_wycheproof_form(msg="00"), 1),
    ],
)
def test_the_wycheproof_runner_takes_right_for_right_and_wrong_for_wrong(
    tool: ModuleType, tmp_path: Path, test: dict[str, Any], status: int
) -> None:
    (tmp_path / "aes_gcm_test.json").write_text(json.dumps(wycheproof_document(test)))
    assert tool.main(["--wycheproof", str(tmp_path)]) == status


def test_the_wycheproof_runner_judges_macs(tool: ModuleType, tmp_path: Path) -> None:
    source = load("macs")["tests"][0]
    test = {"tcId": 1, "key": source["key"], "msg": source["message"], "tag": source["tag"][:24]}
    for result, status in (("valid", 0), ("invalid", 1)):
        document = wycheproof_document({**test, "result": result})
        (tmp_path / "hmac_sha1_test.json").write_text(json.dumps(document))
        assert tool.main(["--wycheproof", str(tmp_path)]) == status


def test_the_wycheproof_runner_counts_what_it_leaves_out_and_fails_without_files(
    tool: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert tool.main(["--wycheproof", str(tmp_path)]) == 1
    document = wycheproof_document(gcm_in_wycheproof_form(), iv=128)
    (tmp_path / "aes_gcm_test.json").write_text(json.dumps(document))
    assert tool.main(["--wycheproof", str(tmp_path)]) == 0
    assert "taken 0 {}, left out 1" in capsys.readouterr().out


def test_our_numbers_are_compared_with_another_copy(tool: ModuleType, tmp_path: Path) -> None:
    def write(relative: str, algorithm: str, tests: list[dict[str, Any]], names: dict[str, str]) -> Path:
        path = tmp_path / relative
        path.parent.mkdir(parents=True, exist_ok=True)
        lines = []
        for number, test in enumerate(tests):
            lines.append(f"COUNT = {number}")
            lines += [
                f"{name} = {''.join(test[f] for f in fields.split('+'))}" for name, fields in names.items()
            ]
        path.write_text("\n".join(lines))
        return path

    macs, ciphers = load("macs")["tests"], load("ciphers")["tests"]

    def of(name: str) -> list[dict[str, Any]]:
        return [t for t in macs if t["algorithm"] == name]

    write(
        "HMAC/rfc-2202-sha1.txt", "hmac-sha1", of("hmac-sha1"), {"Key": "key", "Msg": "message", "MD": "tag"}
    )
    write("HMAC/rfc-4231-sha256.txt", "", of("hmac-sha2-256"), {"Key": "key", "Msg": "message", "MD": "tag"})
    names = {"KEY": "key", "MESSAGE": "message", "OUTPUT": "tag"}
    cmac = write("CMAC/nist-800-38b-aes128.txt", "", of("aes-cmac"), names)
    for bits in (128, 192, 256):
        tests = [
            {**t, "one": "00000001"}
            for t in ciphers
            if t["algorithm"] == "aes-ctr" and len(t["key"]) * 4 == bits
        ]
        names = {"KEY": "key", "IV": "salt+iv+one", "PLAINTEXT": "plaintext", "CIPHERTEXT": "ciphertext"}
        write(f"ciphers/AES/CTR/aes-{bits}-ctr.txt", "", tests, names)
    assert tool.main(["--cryptography-vectors", str(tmp_path)]) == 0
    cmac.write_text(cmac.read_text().replace("OUTPUT = bb", "OUTPUT = bc"))
    assert tool.main(["--cryptography-vectors", str(tmp_path)]) == 1
