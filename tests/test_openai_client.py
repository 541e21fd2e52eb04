"""The service as OpenAI's own Python client sees it, over a real socket."""

import socket
from collections.abc import Iterator
from pathlib import Path
from threading import Thread
from typing import Any

import openai
import pytest
import uvicorn
from pydantic import BaseModel
from scripted_model import ANSWER
from test_judge import ARMS
from test_server import Endless, serve
from tiny_models import make_adapter

from eval.judge import CRITERIA, JudgeConfig, judge
from export.adapter import write_adapter_gguf
from export.convert import Provenance, write_gguf
from kormed_edge.engine import Engine
from kormed_edge.generation import AsyncGeneration
from kormed_edge.openai_shapes import ChatShape, CompletionShape
from kormed_edge.request import Piece, TokenLogprob

HELLO: Any = [{"role": "user", "content": "가장 먼저 할 검사는?"}]
NOBODY = Provenance(name="tiny", run="r", version="0", prompt="p")


class Watched(Engine):
    """An engine that keeps what it was asked for."""

    asked: list[AsyncGeneration]

    def submit_async(self, *given: Any) -> AsyncGeneration:
        self.asked.append(super().submit_async(*given))
        return self.asked[-1]


@pytest.fixture(scope="module")
def engine(scripted_base: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Watched]:
    """The scripted model with an adapter beside it under the name v2."""
    folder = tmp_path_factory.mktemp("adapted")
    model = write_gguf(scripted_base, None, folder / "tiny.gguf", NOBODY).path
    adapter = make_adapter(scripted_base, folder / "adapter", lora_alpha=64)
    lora = write_adapter_gguf(scripted_base, adapter, folder / "v2.gguf", NOBODY).path
    with Watched(model, context=8192, threads=1, adapters={"v2": lora}) as engine:
        engine.asked = []
        yield engine


def listening(app: Any) -> Iterator[str]:
    """The base URL of an app behind uvicorn on a free port."""
    config = uvicorn.Config(app, log_level="critical", lifespan="off", ws="none")
    server = uvicorn.Server(config)
    with socket.create_server(("127.0.0.1", 0)) as listener:
        thread = Thread(target=server.run, args=([listener],))
        thread.start()
        yield f"http://127.0.0.1:{listener.getsockname()[1]}/v1"
        server.should_exit = True
        thread.join()


@pytest.fixture(scope="module")
def url(engine: Watched) -> Iterator[str]:
    yield from listening(serve(engine, max_new_tokens=200))


@pytest.fixture(scope="module")
def client(url: str) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=url, api_key="none", max_retries=0) as client:
        yield client


def chat(client: openai.OpenAI, **settings: Any) -> Any:
    given = {"model": "tiny", "messages": HELLO, **settings}
    return client.chat.completions.create(**given)


def complete(client: openai.OpenAI, **settings: Any) -> Any:
    return client.completions.create(**{"model": "tiny", "prompt": "질문\n", **settings})


def test_chat_is_answered_with_usage_and_fingerprint(client: openai.OpenAI) -> None:
    chat(client)
    answer = chat(client)
    assert answer.choices[0].message.content == ANSWER
    assert (answer.choices[0].finish_reason, answer.model) == ("stop", "tiny")
    assert (answer.object, answer.system_fingerprint) == ("chat.completion", "abababababab")
    usage = answer.usage
    assert usage.total_tokens == usage.prompt_tokens + usage.completion_tokens
    assert usage.prompt_tokens_details.cached_tokens == usage.prompt_tokens - 1


def test_stream_is_role_text_finish_and_usage(client: openai.OpenAI) -> None:
    chunks = list(chat(client, stream=True, stream_options={"include_usage": True}))
    assert (chunks[0].choices[0].delta.role, chunks[0].choices[0].delta.content) == (
        "assistant",
        "",
    )
    said = [c.choices[0] for c in chunks[:-1]]
    assert "".join(choice.delta.content or "" for choice in said) == ANSWER
    assert [choice.finish_reason for choice in said if choice.finish_reason] == ["stop"]
    assert said[-1].delta.content is None
    assert chunks[-1].choices == []
    assert chunks[-1].usage == chat(client).usage.model_copy()
    assert all(chunk.usage is None for chunk in chunks[:-1])
    assert len({chunk.id for chunk in chunks}) == 1


def test_usage_of_a_stream_comes_only_when_asked_for(client: openai.OpenAI) -> None:
    assert all(chunk.choices for chunk in chat(client, stream=True))


def test_helper_for_streams_of_the_client_understands_them(client: openai.OpenAI) -> None:
    with client.chat.completions.stream(model="tiny", messages=HELLO) as stream:
        assert stream.get_final_completion().choices[0].message.content == ANSWER


@pytest.mark.parametrize("stream", [True, False])
def test_log_probabilities_have_the_bytes_of_the_answer(
    client: openai.OpenAI, stream: bool
) -> None:
    answer = chat(client, logprobs=True, top_logprobs=2, stream=stream)
    choices = [chunk.choices[0] for chunk in answer] if stream else answer.choices
    entries = [e for c in choices if c.logprobs for e in c.logprobs.content]
    assert b"".join(bytes(entry.bytes) for entry in entries).decode() == ANSWER
    for entry in entries:
        assert entry.token == bytes(entry.bytes).decode(errors="replace")
        assert entry.top_logprobs[0].token == entry.token
        assert 0 >= entry.logprob == entry.top_logprobs[0].logprob > entry.top_logprobs[1].logprob


def test_stop_seed_and_limits_are_obeyed(client: openai.OpenAI) -> None:
    cut = chat(client, stop="전").choices[0]
    assert (cut.message.content, cut.finish_reason) == (ANSWER.partition("전")[0], "stop")
    short = chat(client, max_completion_tokens=1)
    assert (short.usage.completion_tokens, short.choices[0].finish_reason) == (1, "length")
    random = [
        chat(client, model="v2", seed=seed, temperature=2, max_tokens=20).choices[0].message.content
        for seed in (-1, -1, 8)
    ]
    assert random[0] == random[1] != random[2]


def test_bias_bans_a_token(client: openai.OpenAI, engine: Engine) -> None:
    first = engine.encode(ANSWER)[0]
    said = chat(client, logit_bias={str(first): -100}, max_tokens=5).choices[0].message.content
    assert not said.startswith(ANSWER[0])


class Dose(BaseModel):
    drug: bool
    per_day: int


def test_answer_follows_a_json_schema(client: openai.OpenAI) -> None:
    answer = client.chat.completions.parse(
        model="tiny", messages=HELLO, response_format=Dose, max_tokens=200, seed=1, temperature=1
    )
    assert isinstance(answer.choices[0].message.parsed, Dose)


def test_schema_may_name_its_parts(client: openai.OpenAI) -> None:
    schema = {"$ref": "#/$defs/yes", "$defs": {"yes": {"enum": ["가", "나"]}}}
    form = {"type": "json_schema", "json_schema": {"name": "x", "schema": schema}}
    assert chat(client, response_format=form).choices[0].message.content in ('"가"', '"나"')


def test_answer_is_a_json_object(client: openai.OpenAI) -> None:
    text = chat(client, response_format={"type": "json_object"}, max_tokens=4)
    assert text.choices[0].message.content.startswith("{")


def test_parts_of_text_are_one_message(client: openai.OpenAI) -> None:
    parts = [{"type": "text", "text": text} for text in ("가장 먼저 ", "할 검사는?")]
    whole = chat(client).usage.prompt_tokens
    assert chat(client, messages=[{"role": "user", "content": parts}]).usage.prompt_tokens == whole


def test_raw_prompt_is_text_ids_or_a_list_of_one(client: openai.OpenAI, engine: Engine) -> None:
    prompt = "<|im_start|>user\n질문\n"
    ids = engine.encode(prompt)
    for form in (prompt, [prompt], ids, [ids]):
        answer = complete(client, prompt=form)
        assert (answer.choices[0].text, answer.object) == (ANSWER, "text_completion")
        assert answer.usage.prompt_tokens == len(ids)
    chunks = complete(client, stream=True)
    assert "".join(chunk.choices[0].text for chunk in chunks) == ANSWER


@pytest.mark.parametrize("stream", [True, False])
def test_older_log_probabilities_are_columns(client: openai.OpenAI, stream: bool) -> None:
    answer = complete(client, logprobs=1, stream=stream)
    choices = [chunk.choices[0] for chunk in answer] if stream else answer.choices
    columns = [c.logprobs for c in choices]
    offsets = [at for c in columns for at in c.text_offset]
    tokens = [token for c in columns for token in c.tokens]
    tops = [top for c in columns if c.top_logprobs for top in c.top_logprobs]
    assert offsets[:3] == [0, 1, 2]
    assert offsets == sorted(offsets)
    assert [list(top) for top in tops] == [[token] for token in tokens]


def test_parts_of_a_syllable_are_told_by_their_bytes() -> None:
    entries = tuple(
        TokenLogprob(i, part, -1.0) for i, part in enumerate((b"a", b"\xea", b"\xb0\x80"))
    )
    piece, settings = Piece("a가", "stop", entries), {"with_usage": False, "with_logprobs": True}
    columns = CompletionShape("m", "f", **settings).whole(piece, {})["choices"][0]["logprobs"]
    assert columns["tokens"] == ["a", "bytes:\\xea", "bytes:\\xb0\\x80"]
    assert columns["text_offset"] == [0, 1, 1]
    rows = ChatShape("m", "f", **settings).whole(piece, {})["choices"][0]["logprobs"]["content"]
    assert [row["token"] for row in rows] == ["a", "\ufffd", "\ufffd\ufffd"]
    assert [row["bytes"] for row in rows] == [[97], [0xEA], [0xB0, 0x80]]


def test_adapter_is_a_model_that_a_request_names(client: openai.OpenAI) -> None:
    assert [model.id for model in client.models.list()] == ["tiny", "v2"]
    assert client.models.retrieve("v2").id == "v2"
    tuned = chat(client, model="v2", max_tokens=8)
    assert tuned.model == "v2"
    asked: Any = client.post("/ask", cast_to=object, body={"question": "질문", "model": "v2"})
    assert (asked["model"], asked["adapter"]) == ("v2", "v2")
    assert tuned.choices[0].message.content != ANSWER


@pytest.mark.parametrize(
    ("settings", "error", "param"),
    [
        ({"n": 2}, openai.BadRequestError, "n"),
        ({"tools": [{"type": "function"}]}, openai.BadRequestError, "tools"),
        ({"presence_penalty": 1}, openai.BadRequestError, "presence_penalty"),
        ({"top_logprobs": 2}, openai.BadRequestError, "top_logprobs"),
        ({"logit_bias": {"999999": 1}}, openai.BadRequestError, None),
        ({"extra_body": {"grammar": 'root ::= "a"'}}, openai.BadRequestError, "grammar"),
        ({"response_format": {"type": "json_schema"}}, openai.BadRequestError, "response_format"),
        ({"messages": []}, openai.UnprocessableEntityError, "messages"),
        ({"max_tokens": 0}, openai.UnprocessableEntityError, "max_tokens"),
        ({"temperature": -1}, openai.UnprocessableEntityError, "temperature"),
        ({"temperature": "1"}, openai.UnprocessableEntityError, "temperature"),
        ({"stop": list("abcde")}, openai.UnprocessableEntityError, "stop"),
        ({"model": "gpt-4"}, openai.NotFoundError, "model"),
        ({"messages": [{"role": "user", "content": "가" * 20000}]}, openai.BadRequestError, None),
    ],
)
@pytest.mark.parametrize("stream", [True, False])
def test_bad_request_raises_the_client_s_own_error(
    client: openai.OpenAI, settings: Any, error: type[openai.APIStatusError], param: Any,
    stream: bool,
) -> None:  # fmt: skip
    with pytest.raises(error) as raised:
        chat(client, **settings, stream=stream)
    assert raised.value.type == "invalid_request_error"
    assert str(raised.value.param).startswith(str(param))


@pytest.mark.parametrize("kind", ["image_url", "input_audio", "file"])
def test_other_than_text_is_refused_by_name(client: openai.OpenAI, kind: str) -> None:
    message = {"role": "user", "content": [{"type": kind, kind: {}}]}
    with pytest.raises(openai.BadRequestError, match=kind) as raised:
        chat(client, messages=[message])
    assert (raised.value.code, raised.value.param) == (
        "unsupported_parameter",
        "messages.0.content",
    )


def test_schema_that_cannot_be_a_grammar_is_a_bad_request(client: openai.OpenAI) -> None:
    for schema in (
        {"$ref": "https://a/b"},
        {"type": "nothing"},
        {"pattern": "a", "type": "string"},
    ):
        form = {"type": "json_schema", "json_schema": {"name": "x", "schema": schema}}
        with pytest.raises(openai.BadRequestError):
            chat(client, response_format=form)


def test_failure_in_the_middle_of_a_stream_is_an_error_of_the_client() -> None:
    class Breaking(Endless):
        def submit_async(self, *given: Any) -> Any:
            speech = super().submit_async(*given)
            speech.said.put_nowait(None)  # no piece: what the code does not foresee
            return speech

    for url in listening(serve(Breaking("심"))):
        with openai.OpenAI(base_url=url, api_key="none", max_retries=0) as client:
            stream = iter(chat(client, stream=True))
            assert [next(stream).choices[0].delta.content for _ in "12"] == ["", "심"]
            with pytest.raises(openai.APIError, match="the service failed; its log says more"):
                next(stream)


@pytest.mark.parametrize("path", ["chat", "raw"])
def test_client_that_closes_its_stream_frees_the_only_slot(
    client: openai.OpenAI, engine: Watched, path: str
) -> None:
    [end] = engine.encode("<|im_end|>")
    endless = {"stream": True, "max_tokens": 8000, "logit_bias": {str(end): -100}}
    stream = chat(client, **endless) if path == "chat" else complete(client, **endless)
    next(iter(stream))
    left = engine.asked[-1]
    stream.close()
    assert chat(client).choices[0].message.content == ANSWER
    assert left.completion_tokens < 7000


def test_judge_of_the_evaluation_is_served(url: str) -> None:
    result = judge(ARMS, JudgeConfig(url, "tiny", n=1, repeats=1))
    for arm in result["arms"].values():
        assert (arm["unparsed"], arm["criteria"].keys()) == (0, set(CRITERIA))
