"""The page: a form for the inputs of a task, the progress of a job, and the gallery of finished videos."""

import html
import pathlib

import fastapi
import gradio as gr

from sora_jax.core.errors import InputError
from sora_jax.generate.request import TASKS
from sora_jax.serve.form import Form, form_values, input_of, make_inputs, make_settings, names_of, read_request
from sora_jax.serve.job_queue import Job, JobQueue
from sora_jax.serve.rendering import CARDS, LABELS, STYLE, UPLOADS, about_html, cards_html, error_html, status_html

POLL = 0.5  # seconds between two looks at a job, at most
REMEMBERED = 100  # finished jobs
EXPLAINED = {
    "text": "From words alone. One frame is a picture; seconds make it as long as you like.",
    "image": "A video that begins with a picture, ends with one, or both.",
    "keyframes": "A video that shows these pictures at these times.",
    "extend": "What comes after a video, or before it.",
    "loop": "A video that repeats without a seam; or a link from the end of yours to its beginning.",
    "connect": "Two videos, and what lies between them.",
    "edit": "A variation of your video: the higher the strength, the less of it is left.",
    "inpaint": "White parts of the mask are made anew; the mask has the video's own size.",
    "outpaint": "Your video in the middle of a larger picture: choose its size below.",
}
QUIET = {"api_visibility": "private", "show_progress": "hidden"}
MANY = {"concurrency_limit": None, **QUIET}


def make_app(queue: JobQueue, uploads: pathlib.Path, examples: list[str]) -> fastapi.FastAPI:
    """The web application; `uploads` is Gradio's folder for files."""
    blocks = Page(queue, uploads, examples).blocks
    app = gr.mount_gradio_app(
        fastapi.FastAPI(docs_url=None, redoc_url=None, openapi_url=None),
        blocks,
        path="/",
        footer_links=[],
        run_history=False,
        allowed_paths=[str(queue.out)],
        max_file_size=queue.limits.bytes,
        ssr_mode=False,
        pwa=False,
        mcp_server=False,
        enable_monitoring=False,
        # Other fonts would be fetched from elsewhere.
        theme=gr.themes.Default(
            font=["ui-sans-serif", "system-ui", "sans-serif"], font_mono=["ui-monospace", "monospace"]
        ),
        css=STYLE,
        head=UPLOADS.replace("MAX_BYTES", str(queue.limits.bytes)),
    )
    blocks.has_launched = True  # else Gradio takes any path of this machine for an upload
    return app


class Page:
    """The components of the page, and what they do."""

    def __init__(self, queue: JobQueue, uploads: pathlib.Path, examples: list[str]):
        self.queue, self.uploads = queue, uploads
        self.jobs: dict[str, Job] = {}
        with gr.Blocks(title="sora_jax", analytics_enabled=False, delete_cache=(3600, 86400)) as blocks:
            title = f"# sora_jax\n{html.escape(queue.checkpoint.name)}, step {queue.generator.step}"
            gr.Markdown(title, elem_id="title")
            task = gr.Radio(
                [(LABELS[name], name) for name in TASKS],
                value="text",
                show_label=False,
                elem_id="task",
                container=False,
            )
            self.job_name, self.chosen = gr.State(""), gr.State("")
            with gr.Row():
                with gr.Column(scale=5):
                    self._make_form(task, examples)
                with gr.Column(scale=6):
                    self._make_result()
            gr.Markdown("## Made here")
            self.gallery = gr.HTML(cards_html(queue), js_on_load=CARDS, elem_id="gallery")
            self._connect(blocks)
        self.blocks = blocks.queue(max_size=64, api_open=False)

    def _make_form(self, task, examples):
        self.explained = gr.Markdown(EXPLAINED["text"])
        prompt = gr.Textbox(label="Prompt", lines=2, elem_id="prompt", placeholder="What the video shows")
        gr.Examples(examples, prompt, label="Try")
        self.form = Form(task, prompt, make_inputs(), *make_settings(self.queue))
        with gr.Row():
            self.make = gr.Button("Make it", variant="primary", elem_id="make")
            self.stop = gr.Button("Cancel", interactive=False, elem_id="stop")

    def _make_result(self):
        self.status = gr.HTML(elem_id="status")
        self.result = gr.Video(label="Result", loop=True, autoplay=True, interactive=False, elem_id="result")
        self.about = gr.HTML()
        with gr.Row():
            self.use = gr.Button("Use as input", interactive=False, elem_id="use")
            self.again = gr.Button("Use its settings", interactive=False, elem_id="again")

    def _connect(self, blocks):
        form = self.form
        self.watched = [self.job_name, self.status, self.stop, self.result, self.about, self.chosen]
        self.watched += [self.use, self.again, self.gallery]
        shown = [self.result, self.about, self.chosen, self.use, self.again]
        form.task.change(self.show_inputs, form.task, [self.explained, *form.inputs.values()], **QUIET)
        self.make.click(self.start, form.components, self.watched, **MANY)
        form.prompt.submit(self.start, form.components, self.watched, **MANY)
        self.stop.click(self.cancel, self.job_name, None, **QUIET)
        self.gallery.select(self.choose, None, shown, **QUIET)
        self.use.click(self.use_as_input, [form.task, self.chosen], [form.task, form.inputs["video"]], **QUIET)
        self.again.click(self.use_settings, self.chosen, form.components, **QUIET)
        blocks.load(self.rejoin, None, self.watched, **MANY)

    def show_inputs(self, task):
        """The explanation of a task, and which inputs are seen."""
        taken = names_of(task)
        return [EXPLAINED[task], *(gr.update(visible=input_of(name) in taken) for name in self.form.inputs)]

    def start(self, *values):
        """Submit the form, and show its job until it is over."""
        try:
            job = self.queue.submit(read_request(self.queue, self.uploads, self.form, values))
        except InputError as error:
            yield (gr.skip(), error_html(str(error)), *[gr.skip()] * (len(self.watched) - 2))
            return
        self.jobs[job.out.name] = job
        for old in [name for name, other in self.jobs.items() if other.over][:-REMEMBERED]:
            del self.jobs[old]
        yield from self.follow(job)

    def follow(self, job: Job):
        """Values of `watched` until a job is over."""
        queue = self.queue
        while True:
            over, made = job.over, job.state == "made"
            finished = [gr.skip()] * 6
            if made:
                on = gr.update(interactive=True)
                about = about_html(queue.find(job.out.name)[1])
                finished = [str(job.out), about, job.out.name, on, on, cards_html(queue)]
            status = status_html(job, queue.ahead(job))
            yield (job.out.name, status, gr.update(interactive=not over), *finished)
            if over:
                return
            queue.wait(job, POLL)

    def rejoin(self):
        """After the page is loaded anew: the gallery, and the job that is running."""
        yield (*[gr.skip()] * (len(self.watched) - 1), cards_html(self.queue))
        job = self.queue.latest()
        if job:
            self.jobs[job.out.name] = job
            yield from self.follow(job)

    def cancel(self, name):
        if name in self.jobs:
            self.queue.stop(self.jobs[name])

    def choose(self, event: gr.EventData):
        """A video of the gallery."""
        path, metadata = self.queue.find(str(getattr(event, "name", None)))
        on = gr.update(interactive=True)
        return str(path), about_html(metadata), path.name, on, on

    def use_as_input(self, task, chosen):
        """The chosen video as the input of a task that takes one."""
        path, _ = self.queue.find(chosen)
        return [task if "videos" in names_of(task) else "extend", str(path)]

    def use_settings(self, chosen):
        """The form as it was for the chosen video."""
        return form_values(self.queue, self.form, self.queue.find(chosen)[1])
