"""The videos API, driven by the official client."""

import asyncio
import base64
import http.client
import io
import json
import subprocess
import time

import httpx2
import numpy as np
import openai
import pytest
from openai import omit
from PIL import Image
from serving import STEPS, serving

from sora_jax.data.media.video import probe
from sora_jax.data.media.write import write_clip

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    with serving(tmp_path_factory.mktemp("api") / "out") as server:
        yield server


@pytest.fixture
def client(server):
    for job in list(server.queue.newest()):
        server.queue.delete(job.id)
    wait_until(lambda: not server.queue.running)
    server.model.step_seconds = 0.0
    server.model.made.clear()
    with openai.OpenAI(api_key="x", base_url=server.url) as client:
        yield client


@pytest.fixture(scope="module")
def picture():
    file = io.BytesIO()
    Image.new("RGB", (64, 64), "red").save(file, "png")
    return file.getvalue()


def poll(client, video):
    return client.videos.poll(video.id, poll_interval_ms=20)


def wait_until(true, seconds=20):
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end
        time.sleep(0.01)


def test_a_video_is_created_polled_and_downloaded(client, tmp_path):
    progress = []
    video = client.videos.create(prompt="a bird", size="128x64", extra_body={"seed": 7, "num_inference_steps": 3})
    while video.status in ("queued", "in_progress"):
        progress.append(video.progress)
        video = client.videos.retrieve(video.id)
    assert video.status == "completed" and video.progress == 100 and video.error is None
    assert progress == sorted(progress)
    assert (video.object, video.model, video.prompt, video.size) == ("video", "drawing", "a bird", "128x64")
    assert float(video.seconds) == 9 / 16 and video.completed_at >= video.created_at and video.seed == 7
    client.videos.download_content(video.id).write_to_file(tmp_path / "a.mp4")
    found = probe(tmp_path / "a.mp4")
    assert (found.width, found.height, found.frames) == (128, 64, 9)
    with client.videos.with_streaming_response.download_content(video.id) as response:
        response.stream_to_file(tmp_path / "b.mp4")
        assert response.headers["content-type"] == "video/mp4"
        assert response.headers["content-disposition"].startswith("attachment; filename=")
    assert (tmp_path / "b.mp4").read_bytes() == (tmp_path / "a.mp4").read_bytes()
    for variant, kind, size in (("thumbnail", "WEBP", (128, 64)), ("spritesheet", "JPEG", (5 * 128, 2 * 64))):
        image = Image.open(io.BytesIO(client.videos.download_content(video.id, variant=variant).read()))
        assert (image.format, image.size) == (kind, size)


def test_create_and_poll_returns_the_finished_video(client):
    video = client.videos.create_and_poll(prompt="a bird", seconds="1", poll_interval_ms=20)
    assert video.status == "completed" and float(video.seconds) == 1


def test_the_wait_between_polls_is_the_servers(client, server):
    server.model.step_seconds = 0.2
    raw = client.videos.with_raw_response.create(prompt="a bird")
    assert raw.headers["openai-poll-after-ms"] == "1000" and raw.headers["x-request-id"].startswith("req_")
    done = poll(client, raw.parse())
    assert "openai-poll-after-ms" not in client.videos.with_raw_response.retrieve(done.id).headers


def test_a_picture_reaches_the_model_alike_in_all_forms(client, server, picture, tmp_path):
    (tmp_path / "cat.png").write_bytes(picture)
    forms = [picture, io.BytesIO(picture), ("cat.png", picture, "image/png"), tmp_path / "cat.png"]
    videos = [client.videos.create(prompt="a bird", input_reference=form) for form in forms]
    address = "data:image/png;base64," + base64.b64encode(picture).decode()
    extra = {"input_reference": {"image_url": address}}
    videos.append(client.videos.create(prompt="a bird", extra_body=extra))
    kept = poll(client, videos[0]).inputs["image"]
    extra = {"input_reference": {"file_id": kept}}
    videos.append(client.videos.create(prompt="a bird", extra_body=extra))
    assert {poll(client, video).status for video in videos} == {"completed"}
    inputs = {request.inputs for request in server.model.made}
    assert len(server.model.made) == 6 and len(inputs) == 1
    assert inputs.pop().image.read_bytes() == picture


def test_the_list_is_paged_in_both_orders_and_a_deleted_video_is_gone(client):
    made = [client.videos.create(prompt=f"bird {n}").id for n in range(3)]
    assert [video.id for video in client.videos.list(limit=1, order="asc")] == made
    assert [video.id for video in client.videos.list(limit=2)] == made[::-1]
    first = client.videos.list(limit=1)
    assert first.has_more and first.first_id == first.last_id == made[2]
    assert client.videos.delete(made[0]).deleted is True
    with pytest.raises(openai.NotFoundError) as raised:
        client.videos.retrieve(made[0])
    assert raised.value.code == "video_not_found" and raised.value.request_id
    with pytest.raises(openai.BadRequestError) as raised:
        client.videos.list(after=made[0])
    assert raised.value.param == "after"


@pytest.mark.parametrize(
    "fields, param, words",
    [
        ({"size": "100x100"}, "size", "the height 100 is no multiple of 16"),
        ({"size": "large"}, "size", "pattern"),
        ({"size": "9984x9984"}, "size", "at most 65,536 pixels"),
        ({"seconds": "long"}, "seconds", "number"),
        ({"seconds": "700"}, "seconds", "less than or equal to 600"),
        ({"prompt": ""}, "prompt", ""),
        ({"prompt": "  "}, "prompt", "is empty"),
        ({"extra_body": {"sead": 1}}, "sead", "unknown field"),
        ({"extra_body": {"num_inference_steps": 2000}}, "num_inference_steps", "at most 1,000"),
        ({"extra_body": {"steps": 0}}, "steps", "must be at least 1"),
        ({"extra_body": {"solver": "eular"}}, "solver", "did you mean 'euler'"),
        ({"extra_body": {"task": "edit"}}, "video", "is needed"),
        ({"extra_body": {"task": "dance"}}, "task", "known: "),
        ({"input_reference": b"no picture"}, "input_reference", "not a known video or picture"),
        ({"input_reference": b""}, "input_reference", "empty"),
        ({"extra_body": {"input_reference": {"image_url": "http://127.0.0.1/a.png"}}}, "input_reference", "data:"),
        ({"extra_body": {"input_reference": {"file_id": "../../etc/passwd"}}}, "input_reference", "no input"),
        ({"extra_body": {"seed": -1}}, "seed", "greater than or equal to 0"),
    ],
)
def test_a_wrong_field_is_named(client, server, fields, param, words):
    with pytest.raises(openai.BadRequestError) as raised:
        client.videos.create(**{"prompt": "a bird", **fields})
    error = raised.value
    assert error.param == param and error.type == "invalid_request_error" and words in error.message
    assert "/tmp" not in error.message and str(server.queue.store.out) not in error.message
    assert not list(server.queue.newest())


def test_a_video_as_the_reference_and_an_asked_length_with_a_picture_are_refused(client, picture, tmp_path):
    write_clip(tmp_path / "a.mp4", np.zeros((9, 64, 64, 3), np.uint8), fps=16)
    with pytest.raises(openai.BadRequestError, match="PNG, JPEG or WebP") as raised:
        client.videos.create(prompt="a bird", input_reference=tmp_path / "a.mp4")
    assert raised.value.param == "input_reference"
    with pytest.raises(openai.BadRequestError, match="the model's own length") as raised:
        client.videos.create(prompt="a bird", input_reference=picture, seconds="8")
    assert raised.value.param == "seconds"
    own = client.videos.create(prompt="a bird", input_reference=picture, seconds="0.5625")
    assert poll(client, own).status == "completed"


def test_a_full_queue_is_a_429_and_no_job_is_made_twice(client, server):
    server.model.step_seconds = 1.0
    made = []
    with openai.OpenAI(api_key="x", base_url=server.url, max_retries=0) as hasty:
        with pytest.raises(openai.RateLimitError) as raised:
            made.extend(hasty.videos.create(prompt=f"bird {n}").id for n in range(30))
        assert raised.value.code == "queue_full" and int(raised.value.response.headers["retry-after"]) >= 1
    listed = [video.id for video in client.videos.list(order="asc")]
    assert listed == made and 20 < len(made) < 30


def test_deleting_a_running_job_ends_it_within_a_step_and_the_next_runs(client, server):
    server.model.step_seconds = 0.05
    long = client.videos.create(prompt="a bird", extra_body={"steps": 1000})
    after = client.videos.create(prompt="a bird", extra_body={"steps": 1})
    assert after.queue_position in (0, 1)
    wait_until(lambda: client.videos.retrieve(long.id).step >= 2)
    assert client.videos.delete(long.id).deleted
    began = time.monotonic()
    assert poll(client, after).status == "completed" and time.monotonic() - began < 2
    files = {path.name for path in server.queue.store.out.glob("*.mp4")}
    assert files == {server.queue.get(after.id).file}


def test_a_running_video_shows_a_preview_to_who_looks(client, server):
    server.model.step_seconds = 0.05
    video = client.videos.create(prompt="a bird", size="64x32", extra_body={"steps": 1000})
    preview = f"{server.url}/videos/{video.id}/preview"
    assert httpx2.get(preview).status_code == 204
    wait_until(lambda: httpx2.get(preview).status_code == 200)
    assert Image.open(io.BytesIO(httpx2.get(preview).content)).size == (64, 32)
    client.videos.delete(video.id)
    assert httpx2.get(preview).status_code == 404


def test_edit_remix_and_extend(client, server, tmp_path):
    source = client.videos.create_and_poll(prompt="a bird", size="128x64", poll_interval_ms=20)
    remix = poll(client, client.videos.remix(source.id, prompt="a red bird"))
    assert remix.remixed_from_video_id == source.id and remix.size == "128x64" and remix.task == "edit"
    edit = client.videos.edit(prompt="a cat", video=omit, extra_body={"video": {"id": source.id}, "strength": 0.5})
    assert poll(client, edit).remixed_from_video_id == source.id
    assert server.model.made[-1].inputs.strength == 0.5
    sent = client.videos.download_content(source.id).read()
    assert poll(client, client.videos.edit(prompt="a cat", video=sent)).size == "64x64"
    longer = client.videos.extend(
        prompt="on it goes", seconds="1", video=omit, extra_body={"video": {"id": source.id}}
    )
    assert float(longer.seconds) == (9 + 16) / 16
    with pytest.raises(openai.BadRequestError) as raised:
        client.videos.extend(prompt="on", seconds="0", video=sent)
    assert raised.value.param == "seconds"
    server.model.step_seconds = 0.2
    waits = client.videos.create(prompt="a bird")
    for ask in (
        lambda: client.videos.remix(waits.id, prompt="x"),
        lambda: client.videos.download_content(waits.id),
    ):
        with pytest.raises(openai.BadRequestError) as raised:
            ask()
        assert raised.value.code == "video_not_ready"
    with pytest.raises(openai.NotFoundError):
        client.videos.remix("video_0", prompt="x")


def test_characters_are_told_to_be_absent(client):
    for ask in (
        lambda: client.videos.create_character(name="Ann", video=b"0"),
        lambda: client.videos.get_character("char_1"),
    ):
        with pytest.raises(openai.NotFoundError) as raised:
            ask()
        assert raised.value.code == "not_supported"


def test_the_async_client_and_many_at_once(client, server):
    async def run():
        async with openai.AsyncOpenAI(api_key="x", base_url=server.url) as client:
            prompts = [f"bird {n}" for n in range(8)]
            videos = [client.videos.create_and_poll(prompt=text, poll_interval_ms=20) for text in prompts]
            videos = await asyncio.gather(*videos)
            listed = [video.prompt async for video in client.videos.list(limit=3)]
            content = await client.videos.download_content(videos[0].id)
            return [video.prompt for video in videos], prompts, listed, content.read()

    got, prompts, listed, content = asyncio.run(run())
    assert got == prompts and sorted(listed) == prompts and content[4:8] == b"ftyp"


def test_curl_creates_with_json_and_takes_a_range(client, server):
    body = json.dumps({"prompt": "a bird", "seconds": 1, "steps": 2})
    asked = ["curl", "-s", f"{server.url}/videos", "-H", "content-type: application/json", "-d", body]
    video = json.loads(subprocess.run(asked, capture_output=True, check=True).stdout)
    assert poll(client, type("Video", (), video)).status == "completed"
    part = ["curl", "-s", "-i", "-r", "4-7", f"{server.url}/videos/{video['id']}/content"]
    told = subprocess.run(part, capture_output=True, check=True).stdout
    assert told.startswith(b"HTTP/1.1 206") and told.endswith(b"ftyp")


def test_health_readiness_models_and_metrics(client, server):
    poll(client, client.videos.create(prompt="a bird"))
    assert [model.id for model in client.models.list()] == ["drawing"]
    with pytest.raises(openai.NotFoundError):
        client.models.retrieve("sora-2")
    get = httpx2.get
    assert get(f"{server.address}/health").json() == {"status": "ok"}
    assert get(f"{server.address}/ready").status_code == 200
    told = get(f"{server.address}/metrics").text
    assert 'sora_jax_job_seconds_count{state="completed",task="text"}' in told
    assert 'route="/v1/videos/{video_id}",status="200"' in told and "process_resident_memory_bytes" in told
    get(f"{server.address}/no/such/place")
    assert "/no/such" not in get(f"{server.address}/metrics").text


def test_errors_of_every_kind_have_the_clients_form(server):
    for method, path, status, headers in (
        ("GET", "/nothing", 404, {}),
        ("PUT", "/v1/videos", 405, {}),
        ("GET", "/v1/videos?limit=1000", 400, {}),
        ("POST", "/v1/videos", 415, {"content-type": "text/plain", "content-length": "2"}),
        ("POST", "/v1/videos", 400, {"content-type": "application/json", "content-length": "2"}),
        ("GET", "/v1/videos", 403, {"host": "evil.example"}),
        ("GET", "/v1/videos", 403, {"origin": "http://evil.example"}),
        ("POST", "/v1/videos", 413, {"content-length": str(2**22)}),
        ("POST", "/v1/videos", 411, {"transfer-encoding": "chunked"}),
    ):
        connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=10)
        connection.putrequest(method, path, skip_host="host" in headers)
        for item in headers.items():
            connection.putheader(*item)
        connection.endheaders()
        if headers.get("content-length") == "2":
            connection.send(b"{[")
        answer = connection.getresponse()
        error = json.loads(answer.read())["error"]
        assert answer.status == status and set(error) == {"message", "type", "param", "code"}, (
            path,
            answer.status,
        )
        assert answer.headers["x-request-id"] and answer.headers["content-security-policy"]
        connection.close()


def test_a_failure_of_the_server_tells_no_details(client, server, monkeypatch, capfd):
    def fail(request, out, *callbacks):
        raise RuntimeError(f"{out}: secret")

    monkeypatch.setattr(server.model, "draw", fail)
    video = poll(client, client.videos.create(prompt="a bird"))
    assert video.status == "failed" and video.error.code == "server_error" and "secret" not in video.error.message
    assert "secret" in capfd.readouterr().err
    monkeypatch.undo()
    assert poll(client, client.videos.create(prompt="a bird")).steps == STEPS // 2
