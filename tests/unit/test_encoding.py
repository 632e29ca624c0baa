"""Text to token ids: no state of tokenizer files, no control tokens out of text, and no lost text.

The tokenizers are made by hand, of each kind that public models have.
"""

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken, Tokenizer, models, normalizers, pre_tokenizers, processors

from sweepcp.config.base_model import BaseSpec
from sweepcp.config.suites import MemberSpec
from sweepcp.data.encoding import Encoder, byte_encoder, byte_level_tokenizer, text_encoder
from sweepcp.data.token_store import TokenStore
from sweepcp.errors import InvalidInput
from sweepcp.models.encoder import load_encoder
from sweepcp.models.loading import byte_tokenizer, load_tokenizer, make_encoder
from sweepcp.scoring.held_out import HeldOutText
from sweepcp.search.plan import _token_counter
from tests.make import jsonl

LETTERS = "abcdefghijklmnopqrstuvwxyz"
BYTE_PIECES = [f"<0x{byte:02X}>" for byte in range(256)]
SPECIAL = ["<s>", "</s>", "<unk>"]


def byte_level(**settings: Any) -> Tokenizer:
    """As GPT-2, Llama 3 and Qwen: special tokens are outside of the model's vocabulary."""
    tokenizer = byte_level_tokenizer()
    vocabulary = tokenizer.get_vocab() | {"ab": 256, "<<": 257}
    tokenizer.model = models.BPE(vocabulary, [("a", "b"), ("<", "<")], **settings)
    tokenizer.add_special_tokens(["<s>", "</s>"])
    return tokenizer


def byte_fallback() -> Tokenizer:
    """As Llama 2 and Gemma: BPE over characters, special tokens first in the vocabulary."""
    pieces = [*SPECIAL, *BYTE_PIECES, *LETTERS, "▁", "<", ">", "/", "▁a"]
    vocabulary = {piece: index for index, piece in enumerate(pieces)}
    model = models.BPE(vocabulary, [("▁", "a")], byte_fallback=True, unk_token="<unk>")
    tokenizer = Tokenizer(model)
    tokenizer.normalizer = normalizers.Sequence(
        [normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")]
    )
    tokenizer.add_special_tokens(SPECIAL)
    return tokenizer


def unigram() -> Tokenizer:
    """As T5: the names of special tokens are pieces that the model would match in text."""
    pieces = [*SPECIAL, "▁", "▁the", "<", ">", "/", *LETTERS]
    scores = [(piece, 0.0 if piece in SPECIAL else -3.0) for piece in pieces]
    tokenizer = Tokenizer(models.Unigram(scores, unk_id=2, byte_fallback=False))
    tokenizer.normalizer = normalizers.NFKC()
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.add_special_tokens(SPECIAL)
    return tokenizer


def word_level() -> Tokenizer:
    """Words between white space; a special token's name is a word."""
    vocabulary = {"<s>": 0, "</s>": 1, "<unk>": 2, "the": 3, "tag": 4}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer.add_special_tokens(SPECIAL)
    return tokenizer


def word_piece() -> Tokenizer:
    """As BERT: lower case, without accents, pieces inside words marked by ##."""
    pieces = ["[UNK]", "<s>", "</s>", "cafe", "the", "##s", "."]
    vocabulary = {piece: index for index, piece in enumerate(pieces)}
    tokenizer = Tokenizer(models.WordPiece(vocabulary, unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True, strip_accents=True)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.add_special_tokens(["<s>", "</s>", "[UNK]"])
    return tokenizer


def characters(alphabet: str, unknown: str | None = None) -> Tokenizer:
    """BPE over some characters: others are dropped, or become the unknown token."""
    pieces = ["<s>", "</s>", *([unknown] if unknown else []), *alphabet]
    vocabulary = {piece: index for index, piece in enumerate(pieces)}
    return Tokenizer(models.BPE(vocabulary, [], unk_token=unknown))


def encoder_of(tokenizer: Tokenizer) -> Encoder:
    vocabulary = tokenizer.get_vocab()
    return text_encoder(tokenizer.to_str(), prefix=[vocabulary["<s>"]], suffix=[vocabulary["</s>"]])


def lost(tokenizer: Tokenizer, text: str) -> int:
    encoder = encoder_of(tokenizer)
    return encoder.lost_bytes(text, encoder.encode_text([text])[0])


def save(tokenizer: Tokenizer, folder: Path, **config: str) -> BaseSpec:
    """Save a tokenizer as the model of a base."""
    folder.mkdir(exist_ok=True)
    tokenizer.save(str(folder / "tokenizer.json"))
    content = {"tokenizer_class": "PreTrainedTokenizerFast", **config}
    (folder / "tokenizer_config.json").write_text(json.dumps(content))
    (folder / "config.json").write_text(json.dumps({"model_type": "llama", "vocab_size": 999}))
    return BaseSpec(path=str(folder), max_lr=1e-3)


LOSSLESS = [encoder_of(byte_level()), encoder_of(byte_fallback())]
KINDS = [byte_level, byte_fallback, unigram, word_level]
TEXTS = ["the tag <s> and </s>x ab", "", "  the  tag ", "<s>", "<unk> </s><s>"]


@pytest.mark.parametrize("make", KINDS)
def test_truncation_padding_and_templates_of_the_file_do_not_change_the_tokens(make: Any):
    plain, with_state = make(), make()
    with_state.enable_truncation(3)
    with_state.enable_padding(pad_id=1, pad_token="</s>", length=40)
    with_state.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>", special_tokens=[("<s>", plain.token_to_id("<s>")), ("</s>", 1)]
    )
    assert encoder_of(with_state).encode(TEXTS) == encoder_of(plain).encode(TEXTS)
    assert max(map(len, encoder_of(plain).encode(TEXTS))) > 5


def test_dropout_of_the_file_does_not_make_tokens_random():
    text = "ab" * 200
    expected = encoder_of(byte_level()).encode([text])
    assert [encoder_of(byte_level(dropout=0.5)).encode([text]) for _ in range(3)] == 3 * [expected]
    assert len(expected[0]) == 202


@pytest.mark.parametrize("make", KINDS)
def test_names_of_special_tokens_in_text_are_text(make: Any):
    tokenizer = make()
    control = {tokenizer.token_to_id(name) for name in ("<s>", "</s>")}
    found = [tokenizer.encode(text, add_special_tokens=False).ids for text in TEXTS]
    assert control & {token for ids in found for token in ids}
    encoder = encoder_of(tokenizer)
    for text, ids in zip(TEXTS, encoder.encode(TEXTS), strict=True):
        assert [ids[0], ids[-1]] == [tokenizer.token_to_id("<s>"), tokenizer.token_to_id("</s>")]
        assert not control & set(ids[1:-1])
        # Words of which the vocabulary has no spelling are unknown to it, control tokens or not.
        if make is not word_level:
            assert encoder.lost_bytes(text, ids[1:-1]) == 0


@pytest.mark.parametrize("flags", [{}, {"lstrip": True}, {"rstrip": True}, {"normalized": True}])
@pytest.mark.parametrize("make", [byte_level, byte_fallback, unigram])
def test_special_tokens_with_any_flags_are_text_in_text(make: Any, flags: dict[str, bool]):
    plain, tokenizer = make(), make()
    tokenizer.add_special_tokens([AddedToken("</end>", **flags), AddedToken("<sep>", **flags)])
    texts = ["a </end> b", "a<sep>b </end></end>", "</end>"]
    assert encoder_of(tokenizer).encode(texts) == encoder_of(plain).encode(texts)


def test_boundary_tokens_are_special_whatever_their_flags():
    tokenizer = byte_level_tokenizer()
    tokenizer.add_tokens(["<s>", "</s>"])
    assert encoder_of(tokenizer).encode(["a</s>b"]) == byte_encoder().encode(["a</s>b"])


@pytest.mark.parametrize("make", [byte_level, byte_fallback, unigram])
def test_added_tokens_that_are_not_special_keep_their_ids(make: Any):
    tokenizer = make()
    tokenizer.add_special_tokens(["<|end|>"])
    tokenizer.add_tokens(["    ", "benzene"])
    encoder = encoder_of(tokenizer)
    text = "a    benzene"
    (ids,) = encoder.encode_text([text])
    assert ids == tokenizer.encode(text, add_special_tokens=False).ids
    assert tokenizer.token_to_id("benzene") in ids
    assert encoder.lost_bytes(text, ids) == 0
    assert encoder.vocab_size == tokenizer.token_to_id("benzene") + 1 == tokenizer.get_vocab_size()


def test_a_special_token_that_words_are_spelled_with_stays_a_piece_of_words():
    """GPT-2's users name `!` as padding; a vocabulary may merge into a special token."""
    tokenizer = byte_level()
    plain = encoder_of(tokenizer)
    tokenizer.add_special_tokens(["!", "ab", "<<"])
    for text in ("a!b !!", "abab <<s>> ab"):
        assert encoder_of(tokenizer).encode([text]) == plain.encode([text])
        assert lost(tokenizer, text) == 0


def test_bytes_of_byte_fallback_that_are_special_tokens_still_spell_bytes():
    """A trainer of `tokenizers` is given them as special tokens."""
    tokenizer = byte_fallback()
    plain = encoder_of(tokenizer)
    tokenizer.add_special_tokens(BYTE_PIECES)
    for text in ("東 Ж", "a <0x41>"):
        assert encoder_of(tokenizer).encode([text]) == plain.encode([text])
        assert lost(tokenizer, text) == 0


@pytest.mark.parametrize("make", [byte_level, byte_fallback, unigram, word_level, word_piece])
def test_other_text_has_the_tokens_of_the_tokenizer_itself(make: Any):
    tokenizer = make()
    texts = ["the tags.\n\tab <b> a  ", "Grüße, 東京 ½ ﬁ\u00a0x", "\r\n", "e\u0301 <0x41> ▁a"]
    expected = [tokenizer.encode(text, add_special_tokens=False).ids for text in texts]
    assert encoder_of(tokenizer).encode_text(texts) == expected


@settings(deadline=None, max_examples=100)
@given(st.text())
def test_byte_level_and_byte_fallback_lose_nothing(text: str):
    for encoder in LOSSLESS:
        assert encoder.lost_bytes(text, encoder.encode_text([text])[0]) == 0


@settings(deadline=None, max_examples=200)
@given(st.text(alphabet="abЖ東<s>/▁"))
def test_dropped_and_unknown_characters_are_lost_in_bytes(text: str):
    expected = 2 * text.count("Ж") + 3 * text.count("東")
    assert lost(characters("ab<s>/▁"), text) == expected
    assert lost(characters("ab<s>/▁", unknown="?"), text) == expected


def test_a_word_that_is_unknown_is_lost_whole():
    assert lost(word_level(), "the tag the") == 0
    assert lost(word_level(), "the Wort tag Жук") == 4 + 6
    assert lost(word_piece(), "the cafés. xyz") == 3
    # Nor does the unknown token stand for its own name.
    assert lost(word_level(), "the <unk>") == 5
    assert lost(characters("ab", unknown="?"), "a?Ж") == 1 + 2


def test_what_normalisers_change_is_no_loss_and_what_they_remove_is():
    assert lost(word_piece(), "The CAFÉS") == 0
    assert lost(word_piece(), "cafe\u0301s\u200b the") == 0
    assert lost(unigram(), "ﬁx a\u00a0b") == 0
    # NFKC writes ½ as 1, U+2044 and 2, of which the vocabulary has none.
    assert lost(unigram(), "ﬁx ½") == 1 + 3 + 1
    tokenizer = byte_level()
    tokenizer.normalizer = normalizers.Replace("Ж", "")
    assert lost(tokenizer, "aЖbЖ") == 4


def test_what_pre_tokenizers_remove_is_lost_but_white_space_is_not():
    tokenizer = characters("ab_")
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    assert lost(tokenizer, "a\n\n b\u00a0a") == 0
    tokenizer.pre_tokenizer = pre_tokenizers.CharDelimiterSplit("_")
    assert lost(tokenizer, "a_b_") == 2


def test_held_out_text_that_a_model_has_no_tokens_for_is_not_scored(tmp_path: Path):
    """A model that is scored may have another tokenizer than the stores were made with."""
    base = save(characters("ab "), tmp_path / "base", bos_token="<s>")
    jsonl(tmp_path / "held_out.jsonl", ["ab " * 99, "b a" * 99])
    member, store = MemberSpec(held_out="docs"), TokenStore(tmp_path, "docs")
    encoder = make_encoder(load_tokenizer(base))
    text = HeldOutText(store, member, encoder, seq_len=32, packed=True)
    assert text.bytes.tolist() == [297, 297]
    jsonl(tmp_path / "held_out.jsonl", ["ab " * 99, "b a" * 99, "ЖукЖук"])
    with pytest.raises(InvalidInput, match=r"98\.02% of the 606 bytes of held-out text of docs"):
        HeldOutText(store, member, encoder, seq_len=32, packed=True)


def test_added_tokens_are_spelled_as_they_are():
    """Letters that byte-level vocabularies write bytes with are added tokens of DeepSeek Coder."""
    tokenizer = byte_level()
    tokenizer.add_tokens(["õ", "ø"])
    assert tokenizer.token_to_id("ø") in encoder_of(tokenizer).encode_text(["søt"])[0]
    assert lost(tokenizer, "søt, não, 東") == 0


@pytest.mark.parametrize(
    "model",
    [models.WordLevel({"<s>": 0, "a": 1}), models.Unigram([("<s>", 0.0), ("a", -1.0)])],
    ids=["WordLevel", "Unigram"],
)
def test_text_of_a_tokenizer_without_an_unknown_token_is_refused(model: Any):
    encoder = text_encoder(Tokenizer(model).to_str(), prefix=[0], suffix=[])
    assert encoder.encode_text(["a"]) == [[1]]
    with pytest.raises(InvalidInput, match="a tokenizer that can encode every text"):
        encoder.encode_text(["a", "Ж"])


def test_byte_fallback_without_all_bytes_loses_what_it_cannot_spell():
    tokenizer = byte_fallback()
    content = json.loads(tokenizer.to_str())
    content["model"]["vocab"] = {
        piece: index for piece, index in content["model"]["vocab"].items() if piece != "<0xD0>"
    }
    assert lost(Tokenizer.from_str(json.dumps(content)), "a Ж b Ѐ 東") == 4


def test_the_loaded_tokenizer_of_a_base_has_no_state(tmp_path: Path):
    tokenizer = byte_level(dropout=0.5)
    tokenizer.enable_truncation(3)
    tokenizer.enable_padding(length=8)
    base = save(tokenizer, tmp_path / "base", bos_token="<s>", eos_token="</s>")
    loaded = load_tokenizer(base)
    backend = loaded.backend_tokenizer
    assert backend.truncation is backend.padding is backend.model.dropout is None
    text = "ab" * 50 + "</s>"
    expected = encoder_of(byte_level()).encode([text])
    assert load_encoder(base).encode([text]) == make_encoder(loaded).encode([text]) == expected
    # `plan` reads the file alone, without transformers.
    assert _token_counter(base)([text, "x"]) == len(expected[0]) + 3


@pytest.mark.parametrize(
    "change", [{"vocab_size": "5"}, {"rope_parameters": "x"}, {"dtype": "float7"}]
)
def test_what_transformers_refuses_in_a_configuration_is_no_fault_of_the_tokenizer(
    tmp_path: Path, change: dict[str, str]
):
    base = save(byte_level(), tmp_path / "base", bos_token="<s>", eos_token="</s>")
    config = tmp_path / "base" / "config.json"
    config.write_text(json.dumps({"model_type": "llama"} | change))
    with pytest.raises(InvalidInput, match="that transformers takes for llama") as refusal:
        load_tokenizer(base)
    assert refusal.value.file == str(config)


def test_encoder_of_bytes_is_the_byte_tokenizer():
    text = "Grüße, <b> 東京 </b>\n\n  x"
    ids = byte_tokenizer()(text, add_special_tokens=False)["input_ids"]
    assert byte_encoder().encode([text]) == [[256, *ids, 257]]
    assert len(ids) == len(text.encode())
    assert make_encoder(byte_tokenizer()).encode(["</s>"]) == byte_encoder().encode(["</s>"])
    assert len(byte_encoder().encode_text(["</s>"])[0]) == len("</s>")


@pytest.mark.parametrize("damage", ["truncated", "merges", "no model"])
def test_a_file_that_is_no_tokenizer_is_refused(tmp_path: Path, damage: str):
    base = save(byte_level(), tmp_path / "base", bos_token="<s>")
    file = tmp_path / "base" / "tokenizer.json"
    content = json.loads(file.read_text())
    if damage == "merges":
        content["model"]["merges"] = [["zz", "qq"]]
    elif damage == "no model":
        del content["model"]
    file.write_text(json.dumps(content)[: 99 if damage == "truncated" else None])
    with pytest.raises(InvalidInput, match="save_pretrained") as error:
        load_encoder(base)
    assert error.value.file == base.path
    with pytest.raises(InvalidInput, match="save_pretrained") as error:
        _token_counter(base)
    assert error.value.file == base.path


def test_a_tokenizer_without_bos_and_eos_is_refused(tmp_path: Path):
    base = save(byte_level(), tmp_path / "base")
    with pytest.raises(InvalidInput, match="a token that marks where documents begin") as error:
        load_encoder(base)
    assert (error.value.file, error.value.key) == (base.path, "the tokenizer")
    assert "tokenizer_config.json" in error.value.fix
    only_eos = load_encoder(save(byte_level(), tmp_path / "eos", eos_token="</s>"))
    assert (only_eos.prefix, only_eos.suffix) == ((259,), (259,))
    only_bos = load_encoder(save(byte_level(), tmp_path / "bos", bos_token="<s>"))
    assert (only_bos.prefix, only_bos.suffix) == ((258,), ())
