import re
from pathlib import Path

import pytest

from broker import sources
from broker.errors import SetupError
from broker.sources import ModelSource

REMOTE = '[models.far]\nurl = "http://gpu1:8000/v1"\n'


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working folder, with a model, two adapters and a template in it."""
    for name in ("llama", "law", "poems"):
        (tmp_path / name).mkdir()
    for name in ("law", "poems"):
        (tmp_path / name / "adapter_config.json").write_text("{}")
    (tmp_path / "qwen.jinja").write_text("")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def write(folder: Path, text: str) -> Path:
    (folder / "models.toml").write_text(text)
    return folder / "models.toml"


def test_every_form_of_one_model(here):
    assert sources.parse("echo") == ModelSource("echo", "echo")
    assert sources.parse("m = pocket") == ModelSource("m", "pocket")
    assert sources.parse("./llama") == ModelSource("llama", str(here / "llama"))
    assert sources.parse(f"m={here}/llama") == ModelSource("m", str(here / "llama"))
    assert sources.parse("Qwen/Qwen3-0.6B") == ModelSource("Qwen/Qwen3-0.6B", "Qwen/Qwen3-0.6B")
    assert sources.parse("q=Qwen/Qwen3-0.6B@v1.0") == ModelSource("q", "Qwen/Qwen3-0.6B", revision="v1.0")
    assert sources.parse("Qwen/Qwen3-0.6B@main").name == "Qwen/Qwen3-0.6B@main", "two revisions are two models"
    assert sources.parse("m=https://host/v1/") == ModelSource("m", "https://host/v1")
    assert sources.parse("m=http://[::1]:8000/v1").source == "http://[::1]:8000/v1"


def test_each_model_has_its_engine(here):
    assert [sources.parse(m).engine for m in ("echo", "m=http://h/v1", "pocket", "a/b")] == [
        "echo",
        "remote",
        "torch",
        "torch",
    ]
    assert (sources.parse("law").is_adapter, sources.parse("llama").is_adapter) == (True, False)


def test_what_is_printed_can_be_given_again(here):
    listed = sources.read(write(here, REMOTE))
    for text in ("echo", "m=echo", "./llama", "a/b@main", "q=a/b@main", "m=http://h/v1", "far"):
        group = sources.group(text, listed)
        assert sources.group(",".join(map(str, group)), listed) == group


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("", "names no model"),
        (" , ", "names no model"),
        ("./nope", "no folder './nope'"),
        ("nope", "no folder 'nope'.*FLEETCHAT_MODELS_FILE"),
        ("~nobody-of-that-name/m", "no folder"),
        ("=echo", "no name before the ="),
        ("m=", "model is missing"),
        ("jobs=echo", "cannot be a model's name"),
        ("a b=echo", "cannot be a model's name"),
        ("http://host:8000/v1", "NAME=http://host:8000/v1"),
        ("m=http://", "address of a server"),
        ("m=http://host:port/v1", "address of a server"),
        ("m=https://host/v1?x=1", "address of a server"),
    ],
)
def test_a_text_that_names_no_model_is_one_sentence(text, sentence):
    with pytest.raises(SetupError, match=sentence):
        sources.group(text)


def test_a_password_in_an_address_is_refused_and_not_repeated():
    with pytest.raises(SetupError, match="without a name, a password") as refused:
        sources.parse("m=https://me:s3cret@host/v1")
    assert "s3cret" not in str(refused.value)


@pytest.mark.parametrize(
    "text",
    ["llama,law,poems", "law, poems", "a=http://one/v1,b=http://two/v1", "a=echo,b=echo", "far,b=http://two/v1,"],
)
def test_models_that_share_a_worker(here, text):
    group = sources.group(text, sources.read(write(here, REMOTE)))
    assert len(group) == len([part for part in text.split(",") if part])


@pytest.mark.parametrize("text", ["llama,pocket", "llama,m=http://h/v1", "law,echo", "a/b,c/d", "far,pocket"])
def test_models_that_cannot_share_a_worker(here, text):
    with pytest.raises(SetupError, match="cannot share a worker"):
        sources.group(text, sources.read(write(here, REMOTE)))


def test_two_models_of_one_name_are_refused(here):
    with pytest.raises(SetupError, match="Two models are called m"):
        sources.group("m=echo,m=echo")
    with pytest.raises(SetupError, match="Two models are called echo"):
        sources.for_fleet(["echo", "echo"], None)


def test_the_readmes_file_says_all_that_can_be_said(here):
    readme = (Path(__file__).parents[2] / "README.md").read_text()
    example = re.search(r"<!-- models -->\n```toml\n(.*?)```", readme, re.S)
    assert example
    (here / "templates").mkdir()
    (here / "templates/qwen.jinja").write_text("")
    remote, local = sources.read(write(here, example[1])).values()
    assert remote == ModelSource(
        "llama-3.3-70b",
        "http://gpu1:8000/v1",
        upstream="meta-llama/Llama-3.3-70B-Instruct",
        key_env="GPU1_KEY",
        context=131_072,
        description="The large one",
        licence="Llama 3.3",
        organisation="Meta",
        link="https://huggingface.co/meta-llama/Llama-3.3-70B-Instruct",
        defaults={"temperature": 0.6, "top_p": 0.9, "system": "Answer in the language of the question."},
        listed=True,
    )
    assert local == ModelSource(
        "qwen",
        "Qwen/Qwen3-0.6B",
        revision="main",
        trust_remote_code=True,
        chat_template=str(here / "templates/qwen.jinja"),
        listed=True,
    )
    for key in sources.KEYS:
        assert re.search(rf"\b{key} = ", example[1]), key


def test_paths_are_relative_to_the_file(here, tmp_path_factory, monkeypatch):
    text = '[models.m]\nsource = "llama"\nchat_template = "./qwen.jinja"\n[models.r]\nurl = "http://h/v1"\nkey_file = "k"\n'
    file = write(here, text)
    monkeypatch.chdir(tmp_path_factory.mktemp("elsewhere"))
    local, remote = sources.read(file).values()
    assert (local.source, local.chat_template) == (str(here / "llama"), str(here / "qwen.jinja"))
    assert remote.key_file == str(here / "k")


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("models = ?", "is not TOML: .*line 1"),
        ("", "lists no model"),
        ("models = 3", "lists no model"),
        ("[model.m]", "has 'model' beside its models"),
        ("models.m = 3", r"\[models.m\]: It has to be a table"),
        ("[models.m]", r"\[models.m\]: It needs url .*or source"),
        ('[models.m]\nurl = "http://h/v1"\nsource = "echo"', r"\[models.m\]: It needs url .*not both"),
        ('[models.m]\nsource = "echo"\ncontxt = 3', r"\[models.m\]: There is no contxt; there are .*context"),
        ('[models.m]\nurl = "http://h/v1"\ncontext = "3"', r"\[models.m\]: context has to be a whole number"),
        ('[models.m]\nurl = "http://h/v1"\ncontext = true', r"\[models.m\]: context has to be a whole number"),
        ('[models.m]\nurl = "http://h/v1"\ncontext = 0', r"\[models.m\]: context is 0"),
        ('[models.m]\nurl = ["http://h/v1"]', r"\[models.m\]: url has to be a text"),
        ('[models.m]\nsource = ""', r"\[models.m\]: source is ''"),
        ('[models.m]\nsource = "a/b"\ntrust_remote_code = "yes"', "trust_remote_code has to be true or false"),
        ('[models.m]\nurl = "http://h/v1"\nrevision = "x"', r"\[models.m\]: revision does not go with url"),
        ('[models.m]\nsource = "a/b"\nkey_env = "X"', r"\[models.m\]: key_env does not go with source"),
        ('[models.m]\nurl = "http://h/v1"\nkey_env = "X"\nkey_file = "x"', "two places for one key"),
        ('[models.m]\nurl = "h:8000"', r"\[models.m\]: The address of a server is like"),
        ('[models.m]\nurl = "HTTP://h/v1"', r"\[models.m\]: The address of a server is like"),
        ('[models.m]\nsource = "nowhere"', r"\[models.m\]: There is no folder 'nowhere'"),
        ('[models.m]\nsource = "llama"\nrevision = "x"', r"\[models.m\]: revision goes with the id"),
        ('[models.m]\nsource = "a/b@x"\nrevision = "x"', r"\[models.m\]: revision goes with the id"),
        ('[models.m]\nsource = "a/b"\nchat_template = "no.jinja"', r"\[models.m\]: chat_template: there is no file"),
        ('[models.m]\nsource = "echo"\nlink = "javascript:1"', "link has to be the address of a page"),
        ('[models.m]\nsource = "echo"\ndefaults = 3', "defaults has to be a table"),
        ('[models.m]\nsource = "echo"\n[models.m.defaults]\nseed = 3', r"no defaults\.seed; there are .*temperature"),
        ('[models.m]\nsource = "echo"\n[models.m.defaults]\ntemperature = 3', "from 0 to 2"),
        ('[models.m]\nsource = "echo"\n[models.m.defaults]\nmin_p = true', "min_p has to be a number from 0 to 1"),
        ('[models.m]\nsource = "echo"\n[models.m.defaults]\ntop_k = 0.5', "top_k has to be a whole number"),
        ('[models.m]\nsource = "echo"\n[models.m.defaults]\nsystem = 3', "system has to be a text"),
        ('[models.m]\nsource = "echo"\n[models.m.defaults]\nthinking = 1', "thinking has to be true or false"),
        ('[models.m]\nsource = "echo"\n[models.m.defaults]\nstop = [3]', "stop has to be a list of texts"),
        ('[models.jobs]\nsource = "echo"', r"\[models.jobs\]: 'jobs' cannot be a model's name"),
        ('[models.Qwen3-0.6B]\nsource = "a/b"', r'needs quotes: \[models\."Qwen3-0\.6B"\]'),
    ],
)
def test_a_mistake_in_the_file_names_file_model_and_key(here, text, sentence):
    with pytest.raises(SetupError, match=rf"models\.toml.*{sentence}"):
        sources.read(write(here, text))


@pytest.mark.parametrize("line", ['api_key = "sk-123"', 'key = "sk-123"', 'Token = "sk-123"', 'key_env = "sk-123"'])
def test_a_key_in_the_file_is_refused_and_not_repeated(here, line):
    with pytest.raises(SetupError, match="key_env") as refused:
        sources.read(write(here, REMOTE + line))
    assert "sk-123" not in str(refused.value)


def test_a_file_that_cannot_be_read_is_named(here):
    with pytest.raises(SetupError, match=r"nowhere\.toml cannot be read: No such file"):
        sources.read(here / "nowhere.toml")
    with pytest.raises(SetupError, match="cannot be read: Is a directory"):
        sources.read(here)
    (here / "latin.toml").write_bytes(b"# \xfc\n")
    with pytest.raises(SetupError, match=r"latin\.toml is not TOML"):
        sources.read(here / "latin.toml")


def test_a_worker_serves_what_it_is_told_or_all_remote_models_or_pocket(here):
    both = write(here, REMOTE + '[models.near]\nsource = "echo"\n[models.farther]\nurl = "http://gpu2/v1"\n')
    assert [m.source for m in sources.for_worker("", None)] == ["pocket"]
    assert [m.name for m in sources.for_worker("", both)] == ["far", "farther"]
    assert [m.name for m in sources.for_worker("near", both)] == ["near"]
    assert [m.source for m in sources.for_worker("llama", both)] == [str(here / "llama")]
    local = write(here, '[models.near]\nsource = "echo"\n')
    with pytest.raises(SetupError, match=r"lists no remote model.*FLEETCHAT_MODEL: near"):
        sources.for_worker("", local)


def test_a_fleet_starts_one_worker_for_all_remote_models_and_one_for_each_local(here):
    text = (
        '[models.near]\nsource = "echo"\n' + REMOTE + '[models.p]\nsource = "pocket"\n[models.g]\nurl = "http://g/v1"\n'
    )
    file = write(here, text)

    def names(*texts: str, file: Path | None = file) -> list[list[str]]:
        return [[m.name for m in group] for group in sources.for_fleet(texts, file)]

    assert names() == [["far", "g"], ["near"], ["p"]]
    assert names("far", "near") == [["far"], ["near"]]
    assert names("llama,law", "g", "far") == [["llama", "law"], ["g"], ["far"]]
    assert names(file=None) == [["pocket"]]
