"""What replay can't bear, why, and what to do instead. Names are dotted, as imports resolve them.

`module.*` is any call of something of that module; any other name is found wherever it is used. `thing()` is what a call of
`thing` returns.
"""

from dataclasses import dataclass
from typing import Final


@dataclass(frozen=True, slots=True)
class Rule:
    """One thing that differs from replay to replay, or that a workflow must not do."""

    name: str
    why: str
    cure: str
    names: tuple[str, ...] = ()


_ACTIVITY: Final = "do it in an activity: its result is saved"

RULES: Final = (
    Rule(
        "clock",
        "it is another time at each replay",
        "use ctx.now(), the run's own clock",
        (
            *("time.time", "time.time_ns", "time.monotonic", "time.monotonic_ns", "time.perf_counter"),
            *("time.perf_counter_ns", "time.process_time", "time.localtime", "time.gmtime", "time.ctime"),
            *("datetime.datetime.now", "datetime.datetime.utcnow", "datetime.datetime.today", "datetime.date.today"),
        ),
    ),
    Rule(
        "sleep",
        "it holds the whole worker, and is not remembered",
        "use `await asyncio.sleep(...)`: in a workflow it is durable",
        ("time.sleep", "signal.pause", "select.select"),
    ),
    Rule(
        "chance",
        "it is another value at each replay",
        "use ctx.random or ctx.uuid4(), which the run's id seeds",
        ("random.*", "secrets.*", "os.urandom", "uuid.uuid1", "uuid.uuid4", "uuid.uuid6", "uuid.uuid7"),
    ),
    Rule(
        "io",
        "it is done again at each replay, and may answer otherwise",
        _ACTIVITY,
        (
            *("open", "input", "io.open", "os.system", "os.popen", "os.listdir", "os.scandir", "os.walk", "os.stat"),
            *("os.remove", "os.unlink", "os.rename", "os.replace", "os.mkdir", "os.makedirs", "os.rmdir"),
            *("os.path.exists", "os.path.isfile", "os.path.isdir", "os.path.getmtime", "os.path.getsize"),
            *(f"pathlib.Path().{name}" for name in ("open", "read_text", "read_bytes", "write_text", "write_bytes")),
            *(
                f"pathlib.Path().{name}"
                for name in ("exists", "is_file", "is_dir", "stat", "iterdir", "glob", "unlink")
            ),
            *("pathlib.Path.cwd", "pathlib.Path.home", "shutil.*", "tempfile.*", "glob.*", "subprocess.*", "socket.*"),
            *("http.client.*", "urllib.request.*", "smtplib.*", "ftplib.*", "sqlite3.*", "requests.*", "httpx.*"),
            *("aiohttp.*", "urllib3.*", "asyncpg.*", "psycopg.*", "psycopg2.*", "sqlalchemy.*", "redis.*", "pymongo.*"),
            *("boto3.*", "grpc.*", "kubernetes.*", "kubernetes_asyncio.*", "asyncio.create_subprocess_exec"),
            *("asyncio.create_subprocess_shell", "asyncio.open_connection", "asyncio.start_server"),
        ),
    ),
    Rule(
        "output",
        "it is written again at each replay",
        "use ctx.logger, which is silent while replaying",
        ("print", "logging.*", "structlog.*"),
    ),
    Rule(
        "environment",
        "another pod, or another day, has another one",
        "take it as an argument of the workflow, or read it in an activity",
        (
            *("os.environ", "os.getenv", "os.getpid", "os.getcwd", "os.cpu_count", "platform.*", "sys.argv"),
            *("getpass.getuser", "locale.getlocale"),
        ),
    ),
    Rule(
        "threads",
        "a thread is not replayed, and ends when it likes",
        "make it an activity: a plain function runs in a thread of its own there",
        (
            *("threading.*", "multiprocessing.*", "concurrent.futures.*", "asyncio.to_thread"),
            *("asyncio.run_coroutine_threadsafe", "asyncio.get_running_loop().run_in_executor"),
            *("asyncio.get_event_loop().run_in_executor",),
        ),
    ),
    Rule(
        "loop",
        "the run has a loop of its own, which is replayed",
        "await what is to be awaited",
        ("asyncio.run", "asyncio.new_event_loop", "asyncio.Runner"),
    ),
    Rule(
        "set-order",
        "a set has another order in another process",
        "iterate over sorted(...), or keep a list or a dict",
    ),
    Rule(
        "bare-coroutines",
        "they are begun in the order of a set, which is another one at each replay",
        "make tasks of them first: [asyncio.create_task(...) for ...]",
    ),
    Rule(
        "foreign-await",
        "what another library waits for is not replayed: the run would wait on its own loop for ever, or be refused",
        _ACTIVITY,
    ),
    Rule(
        "global-state",
        "what one run leaves in a module another one finds, and a replay finds it changed",
        "keep it in local variables: they are rebuilt by replay",
    ),
)
BY_NAME: Final = {rule.name: rule for rule in RULES}


def rule_of(name: str, *, is_called: bool) -> Rule | None:
    """The rule that a dotted name breaks."""
    for rule in RULES:
        for pattern in rule.names:
            if name == pattern or (pattern == "os.environ" and name.startswith("os.environ.")):
                return rule
            if is_called and pattern.endswith(".*") and name.startswith(pattern[:-1]):
                return rule
    return None
