"""The page: a form that shows what a task needs, what is being made, and what was made."""

import html
import pathlib

import fastapi
import gradio as gr

from sora_jax.core.errors import InputError
from sora_jax.generate.request import TASKS
from sora_jax.serve.form import field_of, fill, make_fields, make_settings, read_wish, taken
from sora_jax.serve.job_queue import Job, Studio
from sora_jax.serve.rendering import CARDS, LABELS, STYLE, UPLOADS, about_html, bad_html, cards_html, status_html

LONGEST_WAIT = 0.5  # seconds between two looks at a job
EXPLAINED = {
    "text": "From words alone. One frame is a picture; seconds make it as long as you like.",
    "image": "A video that begins with a picture, ends with one, or both.",
    "keyframes": "A video that shows these pictures at these times.",
    "extend": "What comes after a video, or before it.",
    "loop": "A video without a seam; or the end of yours, joined to its beginning.",
    "connect": "Two videos, and what lies between them.",
    "edit": "Your video, told anew: the more strength, the less is left of it.",
    "inpaint": "White in the mask is made anew; the mask has the video's own size.",
    "outpaint": "Your video in the middle, and more around it: choose a larger size below.",
}


def page(studio: Studio, uploads: pathlib.Path, examples: list[str]) -> fastapi.FastAPI:
    """The application that serves the page of a studio; `uploads` is Gradio's folder for files."""
    blocks = _blocks(studio, uploads, examples)
    app = gr.mount_gradio_app(
        fastapi.FastAPI(docs_url=None, redoc_url=None, openapi_url=None),
        blocks,
        path="/",
        footer_links=[],
        run_history=False,
        allowed_paths=[str(studio.out)],
        max_file_size=studio.limits.bytes,
        ssr_mode=False,
        pwa=False,
        mcp_server=False,
        enable_monitoring=False,
        # Fonts of the reader's own system: others would be fetched.
        theme=gr.themes.Default(
            font=["ui-sans-serif", "system-ui", "sans-serif"], font_mono=["ui-monospace", "monospace"]
        ),
        css=STYLE,
        head=UPLOADS.replace("MOST", str(studio.limits.bytes)),
    )
    blocks.has_launched = True  # else Gradio takes any path of this machine for an upload
    return app


def _blocks(studio, uploads, examples):
    jobs: dict[str, Job] = {}

    with gr.Blocks(title="sora_jax", analytics_enabled=False, delete_cache=(3600, 86400)) as blocks:
        gr.Markdown(
            f"# sora_jax\n{html.escape(studio.checkpoint.name)}, step {studio.generator.step}", elem_id="title"
        )
        task = gr.Radio(
            [(LABELS[name], name) for name in TASKS],
            value="text",
            show_label=False,
            elem_id="task",
            container=False,
        )
        name, chosen = gr.State(""), gr.State("")
        with gr.Row():
            with gr.Column(scale=5):
                explained = gr.Markdown(EXPLAINED["text"])
                prompt = gr.Textbox(label="Prompt", lines=2, elem_id="prompt", placeholder="What the video shows")
                gr.Examples(examples, prompt, label="Try")
                fields = make_fields()
                seed, negative, watermark, changes = make_settings(studio.defaults)
                with gr.Row():
                    make = gr.Button("Make it", variant="primary", elem_id="make")
                    stop = gr.Button("Cancel", interactive=False, elem_id="stop")
            with gr.Column(scale=6):
                status = gr.HTML(elem_id="status")
                shown = gr.Video(label="Result", loop=True, autoplay=True, interactive=False, elem_id="result")
                about = gr.HTML()
                with gr.Row():
                    use = gr.Button("Use as input", interactive=False, elem_id="use")
                    again = gr.Button("Use its settings", interactive=False, elem_id="again")
        gr.Markdown("## Made here")
        gallery = gr.HTML(cards_html(studio), js_on_load=CARDS, elem_id="gallery")

        listed = list(fields)
        words = [task, prompt, negative, seed, watermark]
        form = [*words, *(fields[key] for key in listed), *changes.values()]

        def show_fields(task):
            wanted = taken(task)
            return [EXPLAINED[task], *(gr.update(visible=field_of(key) in wanted) for key in listed)]

        def follow(job):
            """Tell of a job until it is over; its outputs are those of `watched`."""
            while True:
                over = job.over
                made = job.state == "made"
                yield (
                    job.out.name,
                    status_html(job, studio.ahead(job)),
                    gr.update(interactive=not over),
                    str(job.out) if made else gr.skip(),
                    about_html(studio.find(job.out.name)[1]) if made else gr.skip(),
                    job.out.name if made else gr.skip(),
                    gr.update(interactive=True) if made else gr.skip(),
                    gr.update(interactive=True) if made else gr.skip(),
                    cards_html(studio) if made else gr.skip(),
                )
                if over:
                    return
                studio.wait(job, LONGEST_WAIT)

        watched = [name, status, stop, shown, about, chosen, use, again, gallery]

        def start(*values):
            try:
                job = studio.submit(read_wish(studio, uploads, listed, list(changes), values))
            except InputError as error:
                yield (gr.skip(), bad_html(str(error)), *[gr.skip()] * (len(watched) - 2))
                return
            jobs[job.out.name] = job
            for old in [key for key, other in jobs.items() if other.over][:-100]:
                del jobs[old]
            yield from follow(job)

        def rejoin():
            """After the page is loaded anew: the gallery, and what is being made."""
            yield (*[gr.skip()] * (len(watched) - 1), cards_html(studio))
            job = studio.latest()
            if job:
                jobs[job.out.name] = job
                yield from follow(job)

        def cancel(name):
            if name in jobs:
                studio.stop(jobs[name])

        def choose(event: gr.EventData):
            path, metadata = studio.find(str(event._data.get("name")))
            on = gr.update(interactive=True)
            return str(path), about_html(metadata), path.name, on, on

        def as_input(task, chosen):
            path, _ = studio.find(chosen)
            task = task if "videos" in taken(task) else "extend"
            return [task, str(path)]

        def as_settings(chosen):
            return fill(studio, listed, list(changes), studio.find(chosen)[1])

        quiet = {"api_visibility": "private", "show_progress": "hidden"}
        many = {"concurrency_limit": None, **quiet}
        task.change(show_fields, task, [explained, *fields.values()], **quiet)
        make.click(start, form, watched, **many)
        prompt.submit(start, form, watched, **many)
        stop.click(cancel, name, None, **quiet)
        gallery.select(choose, None, [shown, about, chosen, use, again], **quiet)
        use.click(as_input, [task, chosen], [task, fields["video"]], **quiet)
        again.click(as_settings, chosen, form, **quiet)
        blocks.load(rejoin, None, watched, **many)
    return blocks.queue(max_size=64, api_open=False)
