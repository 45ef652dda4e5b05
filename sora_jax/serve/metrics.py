"""What the server counts, for Prometheus."""

import prometheus_client

from sora_jax.serve.job_queue import JobQueue
from sora_jax.serve.jobs import Job

REQUEST_BUCKETS = (0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 5, 30)
JOB_BUCKETS = (0.5, 1, 2, 5, 10, 30, 60, 120, 300, 600, 1800, 3600)


class Metrics:
    """Counts of requests and jobs, and the process's memory and open files."""

    def __init__(self):
        self.registry = prometheus_client.CollectorRegistry()
        prometheus_client.ProcessCollector(registry=self.registry)
        self.requests = prometheus_client.Histogram(
            "sora_jax_request_seconds",
            "Time until an answer began.",
            ("method", "route", "status"),
            registry=self.registry,
            buckets=REQUEST_BUCKETS,
        )
        self.jobs = prometheus_client.Histogram(
            "sora_jax_job_seconds",
            "Time that jobs ran.",
            ("task", "state"),
            registry=self.registry,
            buckets=JOB_BUCKETS,
        )
        self.waiting = prometheus_client.Gauge(
            "sora_jax_jobs_waiting", "Jobs in the queue.", registry=self.registry
        )
        self.running = prometheus_client.Gauge("sora_jax_jobs_running", "Jobs that run.", registry=self.registry)

    def on_end(self, job: Job, seconds: float):
        """Count a job that is over."""
        self.jobs.labels(job.request.inputs.name, job.state).observe(seconds)

    def on_answer(self, scope, status: int, seconds: float):
        """Count an answer, by the pattern of its route: addresses themselves would be without number."""
        route = getattr(scope.get("route"), "path", "none")
        self.requests.labels(scope["method"] if route != "none" else "", route, status).observe(seconds)

    def text(self, queue: JobQueue) -> bytes:
        """All counts in Prometheus' format."""
        self.waiting.set(queue.waiting)
        self.running.set(queue.running)
        return prometheus_client.generate_latest(self.registry)
