"""HTML of jobs and finished videos; text from outside is escaped."""

import html
import urllib.parse

SHOWN = 60  # videos of the gallery
LABELS = {
    "text": "Text",
    "image": "Animate",
    "keyframes": "Keyframes",
    "extend": "Extend",
    "loop": "Loop",
    "connect": "Connect",
    "edit": "Edit",
    "inpaint": "Inpaint",
    "outpaint": "Outpaint",
}
STYLE = """
.gradio-container { max-width: 1280px !important; margin: auto; }
#title h1 { margin: 0.2em 0 0; } #title p { opacity: 0.7; margin: 0; }
#task .wrap { gap: 0.4em; }
#task input { position: absolute; opacity: 0; }
#task label span { margin: 0; }
#task label:has(input:checked) { background: var(--color-accent); color: white; }
#task label:focus-within { outline: 2px solid var(--color-accent); outline-offset: 2px; }
.asked:not(:has(.block:not(.hidden, .hide))) { display: none; }
.too-large { position: fixed; top: 16px; left: 50%; transform: translateX(-50%); z-index: 99; padding: 10px 18px;
  border-radius: 8px; background: #b91c1c; color: white; }
#status { min-height: 3.4em; }
.job-bar { height: 6px; border-radius: 3px; background: var(--border-color-primary); overflow: hidden; }
.job-bar > div { height: 100%; background: var(--color-accent); transition: width 0.2s; }
.job-line { margin: 0 0 0.4em; } .job-note { opacity: 0.7; margin: 0.3em 0 0; }
.job-bad { color: var(--error-text-color, #b91c1c); margin: 0; overflow-wrap: anywhere; }
.cards { display: grid; grid-template-columns: repeat(auto-fill, minmax(170px, 1fr)); gap: 12px; }
.card { text-align: left; padding: 0; border: 1px solid var(--border-color-primary); border-radius: 10px;
  overflow: hidden; background: var(--block-background-fill); color: inherit; cursor: pointer; }
.card:hover, .card:focus-visible { border-color: var(--color-accent); }
.card video { width: 100%; aspect-ratio: 1; object-fit: contain; background: #0001; display: block; }
.card p { margin: 6px 10px 8px; font-size: 0.85em; display: -webkit-box; -webkit-line-clamp: 2;
  -webkit-box-orient: vertical; overflow: hidden; }
.card b { font-weight: 600; margin: 8px 10px 0; display: block; font-size: 0.75em; opacity: 0.6; }
.about { width: 100%; font-size: 0.85em; } .about td { padding: 2px 8px 2px 0; overflow-wrap: anywhere; }
.about td:first-child { opacity: 0.6; white-space: nowrap; }
"""
# Files that the server would refuse are not sent.
UPLOADS = """<script>
function refuse(event, files) {
  const file = [...(files || [])].find(file => file.size > MAX_BYTES);
  if (!file) return;
  event.stopImmediatePropagation();
  event.preventDefault();
  if (event.type === 'change') event.target.value = '';
  const told = document.createElement('div');
  told.className = 'too-large';
  told.role = 'alert';
  const size = bytes => (bytes / 2 ** 20).toFixed(1).replace('.0', '');
  told.textContent = `${file.name}: ${size(file.size)} MiB; at most ${size(MAX_BYTES)} MiB are taken`;
  document.body.append(told);
  setTimeout(() => told.remove(), 8000);
}
document.addEventListener('change', event => refuse(event, event.target.files), true);
document.addEventListener('drop', event => refuse(event, event.dataTransfer.files), true);
</script>"""
# A card plays while it is pointed at; its name is looked up among the finished videos.
CARDS = """
const card = event => event.target.closest && event.target.closest('[data-name]');
element.addEventListener('click', event => {
  const c = card(event);
  if (c) trigger('select', {name: c.dataset.name});
});
element.addEventListener('mouseover', event => { const c = card(event); if (c) c.querySelector('video').play(); });
element.addEventListener('mouseout', event => { const c = card(event); if (c) c.querySelector('video').pause(); });
"""


def status_html(job, ahead):
    """The progress of a job."""
    seed = f"seed {job.request.seed}"
    if job.state == "failed":
        return error_html(job.error.replace(f"{job.out.parent}/", ""))
    if job.state == "stopped":
        return f'<p class="job-line">Cancelled after step {job.done}.</p>'
    if job.state == "waiting":
        return f'<p class="job-line">Waiting: {ahead} before it · {seed}</p>'
    if job.state == "made":
        line, share = f"Made in {job.seconds:.1f} s · {seed}", 1.0
    elif not job.total:
        line, share = f"Reading the inputs · {seed}", 0.0
    else:
        line, share = f"Step {job.done} of {job.total} · {seed}", job.done / job.total
    bar = f'<div class="job-bar"><div style="width:{100 * share:.1f}%"></div></div>'
    notes = "".join(
        f'<p class="job-note">{html.escape(note.replace(f"{job.out.parent}/inputs/", ""))}</p>'
        for note in job.notes
    )
    return f'<p class="job-line">{line}</p>{bar}{notes}'


def error_html(line):
    return f'<p class="job-bad">{html.escape(line)}</p>'


def about_html(metadata):
    """A video's metadata, as a table."""
    rows = []
    for key, value in metadata.items():
        if key in ("sora_jax", "number", "ai_generated", "input_hashes") or value in ("", None):
            continue
        value = ", ".join(value) if isinstance(value, list) and all(isinstance(v, str) for v in value) else value
        rows.append(f"<tr><td>{html.escape(key.replace('_', ' '))}</td><td>{html.escape(str(value))}</td></tr>")
    table = f'<table class="about">{"".join(rows)}</table>'
    return f"<details><summary>How it was made</summary>{table}</details>"


def cards_html(queue):
    """The gallery."""
    made = queue.finished()
    cards = []
    for path, metadata in made[:SHOWN]:
        url = html.escape(f"/gradio_api/file={urllib.parse.quote(str(path))}")
        task = LABELS.get(metadata.get("task"), "")
        cards.append(
            f'<button class="card" data-name="{html.escape(path.name)}">'
            f'<video src="{url}" muted loop playsinline preload="metadata"></video>'
            f"<b>{html.escape(task)} · seed {html.escape(str(metadata.get('seed', '')))}</b>"
            f"<p>{html.escape(str(metadata.get('prompt', '')))}</p></button>"
        )
    more = f"<p>{len(made) - SHOWN} older ones are in the folder.</p>" if len(made) > SHOWN else ""
    return f'<div class="cards">{"".join(cards)}</div>{more}' if cards else "<p>Nothing yet.</p>"
