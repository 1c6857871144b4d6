"""Rollouts on Ray, with a Ray that is a few lines: placing, losing and replacing of actors."""

import types

import numpy as np
import pytest

from pangu_jax.core.errors import InputError
from pangu_jax.decode.engine import Request
from pangu_jax.reasoning import sampler_ray
from pangu_jax.reasoning.sampler import Sampled
from pangu_jax.reasoning.sampler_ray import RaySampler


class ActorError(Exception):
    pass


class TaskError(Exception):
    def __init__(self, cause):
        super().__init__(str(cause))
        self.cause = cause


class FakeRay:
    """Calls are made at once, in this process; an actor may have no place, or be dead."""

    exceptions = types.SimpleNamespace(RayActorError=ActorError, RayTaskError=TaskError)

    def __init__(self, cpus=2, gpus=0, places=9):
        self.has, self.places = {"CPU": float(cpus), "GPU": float(gpus)}, places
        self.actors, self.killed, self.running, self.asked = [], [], False, {}

    def is_initialized(self):
        return self.running

    def init(self, **_):
        self.running = True

    def shutdown(self):
        self.running = False

    def cluster_resources(self):
        return {name: count for name, count in self.has.items() if count}

    available_resources = cluster_resources

    def put(self, value):
        return value

    def remote(self, **asked):
        self.asked = asked
        return lambda cls: types.SimpleNamespace(remote=lambda *a, **k: Handle(self, cls, a, k))

    def kill(self, actor):
        self.killed.append(actor)

    def wait(self, refs, num_returns, timeout):
        assert num_returns <= len(refs) and timeout < 1
        return [ref for ref in refs if ref.done()], [ref for ref in refs if not ref.done()]

    def get(self, ref):
        return [one.result() for one in ref] if isinstance(ref, list) else ref.result()


class Handle:
    """An actor: with a place it answers, until it is dead."""

    def __init__(self, ray, cls, given, named):
        ray.actors.append(self)
        self.placed, self.dead = len(ray.actors) <= ray.places, False
        self.there = cls(*given, **named) if self.placed else None

    def __getattr__(self, name):
        return types.SimpleNamespace(remote=lambda *given: Call(self, name, given))


class Call:
    """What came of a call; where an actor is dead before anyone looks, nobody knows."""

    def __init__(self, actor, name, given):
        self.actor, self.value, self.error = actor, None, None
        if actor.placed and not actor.dead:
            try:
                self.value = getattr(actor.there, name)(*given)
            except InputError as error:
                self.error = TaskError(error)

    def done(self):
        return self.actor.placed

    def result(self):
        if self.actor.dead:
            raise ActorError("it is dead")
        if self.error is not None:
            raise self.error
        return self.value


class Local:
    """In place of a `LocalSampler`: an answer ends in the poll after the one it began before."""

    def __init__(self, params, *, version, slots, **_):
        self.engine, self.weights, self.version, self.slots = self, params, version, slots
        self.running, self.begun = [], []

    @property
    def busy(self):
        return bool(self.running)

    def start(self, group, sample, request):
        if request.max_new_tokens > 8:
            raise InputError("room for 8")
        self.running.append((group, sample))
        self.begun.append((group, sample, self.version))

    def update(self, params):
        self.weights, self.version = params, self.version + 1

    def poll(self, *, wake=True):
        ended, self.running = self.running, []
        return [Sampled(*place, "an answer") for place in ended]


@pytest.fixture
def fake(monkeypatch):
    """A Ray with two CPUs."""
    ray = FakeRay()
    monkeypatch.setattr(sampler_ray, "import_ray", lambda: ray)
    monkeypatch.setattr(sampler_ray, "LocalSampler", Local)
    return ray


def sampler(**changes):
    return RaySampler({"w": np.zeros(2)}, **{"model": None, "slots": 5, "length": 8} | changes)


def begin(made, count):
    for number in range(count):
        made.start(number, 0, Request([1], 4))


def places(found):
    return sorted((one.group, one.sample) for one in found)


def test_samples_are_spread_and_come_back_with_the_weights_of_now(fake):
    made = sampler(version=3)
    assert fake.asked == {"num_gpus": 0.0, "num_cpus": 1}
    begin(made, 3)
    first, second = (actor.there._sampler for actor in fake.actors)
    assert [len(first.begun), len(second.begun)] == [2, 1] and first.slots == 3
    assert places(made.poll()) == [(0, 0), (1, 0), (2, 0)] and made.poll() == []
    made.update({"w": np.ones(2)})
    begin(made, 2)
    assert first.begun[-1] == (0, 0, 4) and second.weights["w"][0] == 1
    made.close()
    assert fake.killed == fake.actors and not fake.running, "Ray was begun here"


def test_ray_that_runs_already_stays(fake):
    fake.running = True
    sampler().close()
    assert fake.running


def test_an_actor_that_is_lost_is_replaced_and_its_samples_are_told(fake):
    made = sampler()
    made.update({"w": np.ones(2)})
    begin(made, 3)
    fake.actors[0].dead = True
    found = made.poll()
    assert places(one for one in found if one.answer is None) == [(0, 0), (2, 0)]
    assert places(one for one in found if one.answer is not None) == [(1, 0)]
    assert len(fake.actors) == 3
    other = fake.actors[2].there._sampler
    assert other.version == 1 and other.weights["w"][0] == 1, "it has the weights of now"
    begin(made, 2)
    assert len(other.begun) == 1 and all(one.answer for one in made.poll())


def test_actors_that_end_one_after_another_end_the_run(fake):
    made = sampler()
    for _ in range(sampler_ray.IN_A_ROW - 1):
        begin(made, 2)
        made._places[0].actor.dead = True
        made.poll()
    begin(made, 1)
    assert made.poll()[0].answer, "an answer: those before are forgiven"
    for _ in range(sampler_ray.IN_A_ROW - 1):
        begin(made, 2)
        made._places[0].actor.dead = True
        made.poll()
    begin(made, 2)
    made._places[0].actor.dead = True
    with pytest.raises(InputError, match="3 workers of Ray ended one after another: it is dead"):
        made.poll()


def test_what_an_actor_refuses_is_said(fake):
    made = sampler()
    made.start(0, 0, Request([1], 9))
    with pytest.raises(InputError, match="a worker of Ray failed: room for 8"):
        made.poll()


@pytest.mark.parametrize(
    "changes, words",
    [
        ({"workers": 3}, "3 workers need 3 CPUs, and Ray has 2"),
        ({"workers": 2, "gpus": 0.5}, "2 workers need 1 GPUs, and Ray has 0"),
    ],
)
def test_more_actors_than_ray_can_place_are_refused(fake, changes, words):
    with pytest.raises(InputError, match=words):
        sampler(**changes)
    assert not fake.actors and not fake.running


def test_an_actor_that_never_gets_its_place_ends_the_run(fake, monkeypatch):
    fake.places = 1
    made = sampler()
    begin(made, 2)
    assert places(made.poll()) == [(0, 0)], "those that are there write"
    begin(made, 1)
    late = made._places[1].until + 1
    monkeypatch.setattr(sampler_ray.time, "monotonic", lambda: late)
    with pytest.raises(InputError, match="1 of 2 workers of Ray did not begin within 300 s; Ray "):
        made.poll()


def test_a_ray_that_cannot_be_joined_is_said(fake, monkeypatch):
    def refuses(**_):
        raise ConnectionError("nobody is there")

    fake.init = refuses
    monkeypatch.setenv("RAY_ADDRESS", "10.0.0.1:6379")
    with pytest.raises(InputError, match=r"joined at RAY_ADDRESS=10.0.0.1:6379: nobody is there"):
        sampler()
