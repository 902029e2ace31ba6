"""A small reading of the profiles, apart from the one of the program: enough for the answers of real servers."""

import datetime
import tomllib
from pathlib import Path

BUILTIN = Path(__file__).resolve().parent.parent.parent / "src/profile/builtin"
FINAL = ("succeeded", "failed", "canceled", "skipped")
NOTHING = (None, "", {}, [])


def profile(name):
    """A built-in profile by its name, or another one by the path of its file."""
    path = name if isinstance(name, Path) else BUILTIN / f"{name}.toml"
    return tomllib.loads(path.read_text())


def at(document, pointer):
    """What is at a pointer: RFC 6901, and `[key=value]` for an element of an array."""
    for token in pointer.split("/")[1:]:
        token = token.replace("~1", "/").replace("~0", "~")
        if isinstance(document, dict):
            document = document.get(token)
        elif isinstance(document, list) and token.startswith("["):
            key, value = token[1:-1].split("=", 1)
            document = next((item for item in document if str(item.get(key)) == value), None)
        elif isinstance(document, list) and token.isdigit() and int(token) < len(document):
            document = document[int(token)]
        else:
            return None
    return document


def pointers(value):
    return value if isinstance(value, list) else [value] if value is not None else []


def first(document, places):
    """The first value that is there."""
    return next((found for place in pointers(places) if (found := at(document, place)) not in NOTHING), None)


def _same(one, other, exact):
    if isinstance(one, bool) or isinstance(other, bool):
        return one is other
    if isinstance(one, str) and isinstance(other, str) and not exact:
        return one.lower() == other.lower()
    return one == other


def _holds(value, test, exact):
    match test:
        case {"absent": _}:
            return value in NOTHING
        case {"present": _}:
            return value not in NOTHING
        case {"gt": least}:
            return isinstance(value, (int, float)) and not isinstance(value, bool) and value > least
    values = value if isinstance(value, list) else [value]
    return any(_same(one, other, exact) for one in values for other in pointers(test))


def conclude(rules, answer, http=200, exact=False):
    """The state of the first rule whose tests all hold."""
    for rule in rules:
        values = {place: http if place == "@http" else at(answer, place) for place in rule["when"]}
        if all(_holds(values[place], test, exact) for place, test in rule["when"].items()):
            return rule["is"]
    return "unknown"


def time(value):
    """A time of an answer as RFC 3339 in UTC with milliseconds."""
    if value in (None, 0, ""):
        return None
    if isinstance(value, str):
        moment = datetime.datetime.fromisoformat(value.replace("Z", "+00:00"))
        moment = moment if moment.tzinfo else moment.replace(tzinfo=datetime.timezone.utc)
    else:
        moment = datetime.datetime.fromtimestamp(value / 1000 if value >= 1e11 else value, datetime.timezone.utc)
    text = moment.astimezone(datetime.timezone.utc).isoformat(timespec="milliseconds")
    return text.replace("+00:00", "Z")


def _root(data, answer):
    places = [place for rule in data["rules"] for place in rule["when"] if place != "@http"]
    places += pointers(data.get("status")) + pointers(data.get("check_id"))
    roots = [at(answer, root) for root in data.get("roots", [""])]
    return next((root for root in roots if any(at(root, place) not in NOTHING for place in places)), None)


def _first_answer(data, run_id, answer, http):
    root = _root(data, answer)
    shown = answer if root is None else root
    state = conclude(data["rules"], shown, http, data.get("exact", False))
    if state == "unknown" and http in (404, 410):
        state = "not_found"
    named = first(shown, data.get("check_id"))
    if "check_id" in data and state != "not_found" and not f"/{run_id}".endswith(f"/{named}"):
        state = "unusable"
    places = data.get("status") or [place for place in data["rules"][0]["when"]]
    run = {"state": state, "root": root, "error": first(shown, data.get("error"))}
    run["status"] = http if places == ["@http"] else first(shown, places)
    for field in ("attempt", "name", "group"):
        run[field] = first(shown, data.get(field))
    for field in ("created", "started"):
        run[field] = time(first(shown, data.get(field)))
    run["finished"] = time(first(shown, data.get("finished")))
    length = first(shown, data.get("duration_ms"))
    if run["finished"] is None and run["started"] and length:
        begun = datetime.datetime.fromisoformat(run["started"].replace("Z", "+00:00"))
        run["finished"] = time((begun + datetime.timedelta(milliseconds=length)).isoformat())
    return run


def _worst(states):
    """What a run is whose parts are in these states."""
    going = [state for state in states if state not in FINAL]
    if not states or (going and all(state == "pending" for state in states)):
        return "pending"
    if going:
        return "waiting" if "waiting" in going else "running"
    return next(state for state in ("failed", "canceled", "skipped", "succeeded") if state in states)


def read(name, run_id, answer, http=200, second=None):
    """State, status, texts and times of an answer, and of the second one where the profile wants that."""
    data = profile(name)
    run = _first_answer(data, run_id, answer, http)
    if second is not None and run["state"] == "not_found":
        found = _first_answer(data, run_id, second, 200)
        run = run if found["root"] is None else found
    elif second is not None and "each" in data and run["state"] not in FINAL:
        items = at(second, data["each"]["items"]) or []
        run["state"] = _worst([conclude(data["each"]["rules"], item) for item in items])
    elif second is not None:
        for more in (data.get("confirm", {}), data.get("detail", {})):
            if run["state"] in more.get("on", ["failed"] if more else []):
                concluded = conclude(more.get("rules", []), second)
                run["state"] = run["state"] if concluded == "unknown" else concluded
                run["error"] = first(second, more.get("error")) or run["error"]
    if run["state"] not in FINAL:
        run["finished"] = None
    if run["state"] != "failed":
        run["error"] = None
    return run
