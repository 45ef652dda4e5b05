"""Many questions to a chat model, in parallel."""

import concurrent.futures
from collections.abc import Callable

from sora_jax.captioning.chat import BudgetSpentError, Chat, NoAnswerError
from sora_jax.core.errors import InputError
from sora_jax.core.progress import progress_bar

MAX_FAILURES = 5  # failures before the first answer: then no question will be answered


class UnreadableError(Exception):
    """A file can't be turned into a question."""


def ask_all(
    questions: dict, answer: Callable, keep: Callable, chat: Chat, *, parallel: int, name: str, console
) -> tuple[dict[str, str], int]:
    """Answer questions, some at a time.

    Args:
      questions: key -> question.
      answer: question -> answer; called in threads. Raises: UnreadableError, or as `Chat.ask`.
      keep: called with each (key, answer) as it comes.
      parallel: number of threads.
      name: of the questions, for the progress bar.
    Returns: (key -> why it has no answer, number of questions left when the budget was spent).
    Raises: InputError if no question can be answered.
    """
    failed: dict[str, str] = {}
    left = answered = unanswered = 0
    with (
        progress_bar(console) as bar,
        concurrent.futures.ThreadPoolExecutor(parallel, thread_name_prefix="chat") as pool,
    ):
        task = bar.add_task(name, total=len(questions), numbers="")

        def work(key, question):
            keep(key, answer(question))  # in the thread, so that a paid answer is kept whatever happens here

        waiting = {pool.submit(work, key, question): key for key, question in questions.items()}
        try:
            for future in concurrent.futures.as_completed(waiting):
                key = waiting[future]
                try:
                    future.result()
                    answered += 1
                except BudgetSpentError:
                    left += 1
                except UnreadableError as error:
                    failed[key] = str(error)
                except NoAnswerError as error:
                    failed[key] = str(error)
                    unanswered += 1
                    if not answered and unanswered >= min(MAX_FAILURES, len(questions)):
                        raise InputError(
                            f"no answer to any of the first {unanswered} questions: {error}"
                        ) from None
                bar.update(task, completed=answered + len(failed), numbers=f"{chat.tokens:,} tokens")
        except BaseException:
            chat.close()
            for future in waiting:
                future.cancel()
            raise
    return failed, left
