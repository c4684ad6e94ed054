"""The hook for mmpose, in loops like mmengine's runner with a model like `PoseLifter`."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from copy import deepcopy
from functools import lru_cache
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from loops import PUBLISHED, SMALL, Batch, differences, make_batch, same_bits
from stand_ins import Call, Kind, Run, check_active, check_paused
from torch import Tensor, nn

from poseaug_plugin import HostPoses, PoseAugError
from poseaug_plugin.body.presets import H36M_17
from poseaug_plugin.reference.recipes import Paper

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # what mmengine has to say, where there is one
    from adapters.mmpose_hook import LiftingAdapter, PoseAugMMHook, read_batch, write_batch

WIDTH, HEIGHT = 1000, 1002
SIZE, STEPS = 16, 6

DataBatch = dict[str, Any]


class Sample:
    """A `PoseDataSample`: labels, and meta data that is copied in and out."""

    def __init__(self, label: Tensor, metainfo: dict[str, Any]) -> None:
        self.gt_instance_labels = SimpleNamespace(lifting_target_label=label)
        self._metainfo = deepcopy(metainfo)

    @property
    def metainfo(self) -> dict[str, Any]:
        return dict(self._metainfo)

    def set_metainfo(self, metainfo: dict[str, Any]) -> None:
        self._metainfo |= deepcopy(metainfo)


class Head(nn.Module):
    """Whose forward the model calls by its name, so that its own hooks see nothing."""

    def __init__(self, joints: int) -> None:
        super().__init__()
        self.joints = joints
        self.conv = nn.Conv1d(32, 3 * joints, 1)

    def forward(self, features: Tensor) -> Tensor:
        return self.conv(features).reshape(-1, self.joints, 3)


class Estimator(nn.Module):
    """A pose without its trajectory from 2D (B, 2J, 1)."""

    def __init__(self, joints: int = 17) -> None:
        super().__init__()
        self.backbone = nn.Sequential(
            nn.Conv1d(2 * joints, 32, 1), nn.BatchNorm1d(32), nn.ReLU(), nn.Dropout(0.2)
        )
        self.head = Head(joints)

    def forward(
        self,
        inputs: list[Tensor] | Tensor,
        data_samples: list[Sample] | None = None,
        mode: str = "tensor",
    ) -> Any:
        if isinstance(inputs, list):
            inputs = torch.stack(inputs)
        predicted = self.head.forward(self.backbone(inputs))
        if mode == "tensor":
            return predicted
        label = torch.cat([s.gt_instance_labels.lifting_target_label for s in data_samples])
        error = (predicted - label).norm(dim=-1).mean()
        return {"loss_pose3d": error, "mpjpe": error.detach()}


def camera_param(intrinsics: Tensor) -> dict[str, Any]:
    """In pixels, as columns; tangential coefficients y before x."""
    focal, centre, radial, tangential = (
        x.double().numpy()[:, None] for x in intrinsics.split([2, 2, 3, 2])
    )
    centre = (centre[:, 0] + [1, HEIGHT / WIDTH])[:, None] * WIDTH / 2
    focal = focal * WIDTH / 2
    lens = {"f": focal, "c": centre, "k": radial, "p": tangential[::-1]}
    return {**lens, "w": WIDTH, "h": HEIGHT, "name": "camera1"}


def collated(batch: Batch) -> DataBatch:
    """What the data loader gives."""
    return {
        "inputs": list(batch.inputs_2d.permute(0, 2, 3, 1).flatten(1, 2).contiguous()),
        "data_samples": [
            Sample(
                label.index_fill(1, torch.tensor(0), 0.0),
                {"target_root": label[:, 0].numpy(), "camera_param": camera_param(camera), "id": i},
            )
            for i, (camera, label) in enumerate(zip(batch.camera, batch.inputs_3d, strict=True))
        ],
    }


def data_batches(count: int = STEPS) -> Iterator[DataBatch]:
    for seed in range(count):
        yield collated(make_batch(SIZE, H36M_17, seed=seed))


def contents(data_batch: DataBatch) -> list[Any]:
    samples = data_batch["data_samples"]
    return [
        data_batch["inputs"],
        [s.gt_instance_labels.lifting_target_label for s in samples],
        [s.metainfo for s in samples],
    ]


class Runner:
    """The order in which mmengine's runner calls hooks, steps and validates."""

    def __init__(self, wrapped: bool = False) -> None:
        torch.manual_seed(0)
        model = Estimator()
        self.model = nn.DataParallel(model) if wrapped else model
        self.optimizer = torch.optim.Adam(self.model.parameters(), lr=1e-3)
        self.iter = 0

    def load(self, hook: PoseAugMMHook, checkpoint: dict[str, Any], resume: bool) -> None:
        hook.after_load_checkpoint(self, checkpoint=checkpoint)
        self.iter = checkpoint["iter"] if resume else 0

    def save(self, hook: PoseAugMMHook) -> dict[str, Any]:
        checkpoint = {"iter": self.iter}
        hook.before_save_checkpoint(self, checkpoint=checkpoint)
        return deepcopy(checkpoint)

    def train(self, hook: PoseAugMMHook | None, kind: Kind = "active") -> Run:
        losses: list[float] = []
        calls: list[Call] = []
        if hook is not None:
            hook.before_train(self)
            hook.hook.enabled = kind == "active"
        for index, data_batch in enumerate(data_batches()):
            self.model.train()
            given = read_batch(data_batch, 0, normalized=False)
            if hook is not None:
                hook.before_train_iter(self, batch_idx=index, data_batch=data_batch)
            returned = read_batch(data_batch, 0, normalized=False)
            calls.append(Call(HostPoses(*given[:2]), HostPoses(*returned[:2]), given.camera))
            losses.append(self.step(data_batch))
            self.model.eval()
            with torch.no_grad():
                self.model(data_batch["inputs"])
        return Run(losses, hook and hook.hook, calls)

    def step(self, data_batch: DataBatch) -> float:
        loss = self.model(**data_batch, mode="loss")["loss_pose3d"]
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()
        self.iter += 1
        return loss.item()


def make_hook(**options: Any) -> PoseAugMMHook:
    return PoseAugMMHook(**{**SMALL, **options})


@lru_cache
def run(kind: Kind) -> Run:
    return Runner().train(None if kind == "plain" else make_hook(), kind)


# -- the loop --------------------------------------------------------------------------------------


def test_paused_hook_changes_nothing() -> None:
    check_paused(run("plain"), run("paused"))


def test_paused_hook_passes_the_very_batch_on() -> None:
    runner, hook = Runner(), make_hook()
    hook.before_train(runner)
    (data_batch,) = data_batches(1)
    before = [id(x) for part in contents(data_batch)[:2] for x in part]
    with hook.hook.paused():
        hook.before_train_iter(runner, 0, data_batch)
    assert [id(x) for part in contents(data_batch)[:2] for x in part] == before


def test_loop_with_the_hook() -> None:
    check_active(run("plain"), run("active"))


def test_batch_keeps_its_form() -> None:
    runner, hook = Runner(), make_hook()
    hook.before_train(runner)
    (data_batch,) = data_batches(1)
    inputs, labels, metainfo = contents(deepcopy(data_batch))
    hook.before_train_iter(runner, 0, data_batch)
    new_inputs, new_labels, new_metainfo = contents(data_batch)
    assert isinstance(new_inputs, list)
    changed = placed = 0
    for i in range(SIZE):
        assert (new_inputs[i].shape, new_inputs[i].dtype) == ((34, 1), torch.float32)
        assert (new_labels[i].shape, new_labels[i].dtype) == ((1, 17, 3), torch.float32)
        assert (new_labels[i][:, 0] == 0).all()
        place, new_place = metainfo[i].pop("target_root"), new_metainfo[i].pop("target_root")
        assert (new_place.shape, new_place.dtype) == (place.shape, place.dtype)
        assert differences(metainfo[i], new_metainfo[i]) == []
        is_same = same_bits(new_inputs[i], inputs[i])
        assert is_same == same_bits(new_labels[i], labels[i])
        moved = not np.array_equal(place, new_place)
        assert not (moved and is_same)
        changed, placed = changed + (not is_same), placed + moved
    assert 10 <= changed <= 12
    assert 0 < placed < changed  # a third of them keeps its place


def test_wrapped_model_is_seen_too() -> None:
    check_active(run("plain"), Runner(wrapped=True).train(make_hook()))


def test_feedback_through_the_estimator() -> None:
    learned = Runner().train(make_hook(preset=Paper(**PUBLISHED), total_updates=STEPS)).hook
    assert learned.diagnostics().updates == STEPS
    assert learned.losses["policy/feedback"].isfinite()
    assert learned.losses["policy/feedback"] != 0


def test_copies_of_the_model_do_not_report() -> None:
    runner, hook = Runner(), make_hook()
    hook.before_train(runner)
    (data_batch,) = data_batches(1)
    hook.before_train_iter(runner, 0, data_batch)
    deepcopy(runner.model)(**data_batch, mode="loss")
    assert hook.hook._observer.prediction is None
    runner.model(**data_batch, mode="loss")
    assert hook.hook._observer.prediction.shape == (SIZE, 1, 51)


# -- checkpoints -----------------------------------------------------------------------------------


def test_resumed_training_goes_on() -> None:
    runner, hook = Runner(), make_hook()
    runner.train(hook)
    checkpoint = runner.save(hook)
    resumed, again = Runner(), make_hook()
    resumed.load(again, checkpoint, resume=True)
    again.before_train(resumed)
    assert differences(again.hook.state_dict(), checkpoint["poseaug"]) == []
    assert again.hook.diagnostics().updates == STEPS


def test_loaded_weights_begin_another_training() -> None:
    runner, hook = Runner(), make_hook()
    runner.train(hook)
    other, again = Runner(), make_hook()
    other.load(again, runner.save(hook), resume=False)
    again.before_train(other)
    assert again.hook.diagnostics().updates == 0


def test_checkpoint_without_the_hooks_state_can_be_resumed() -> None:
    runner, hook = Runner(), make_hook()
    runner.load(hook, {"iter": 4}, resume=True)
    runner.train(hook)
    assert hook.hook.diagnostics().updates == STEPS


def test_nothing_is_saved_where_nothing_was_trained() -> None:
    assert Runner().save(make_hook()) == {"iter": 0}


# -- reading and writing ---------------------------------------------------------------------------


def test_batch_is_read_in_the_librarys_terms() -> None:
    batch = make_batch(SIZE, H36M_17)
    read = read_batch(collated(batch), 0, normalized=False)
    assert same_bits(LiftingAdapter().decode(*read, H36M_17).keypoints, batch.inputs_2d)
    assert same_bits(read.inputs_3d, batch.inputs_3d)
    assert (read.camera - batch.camera).abs().max() < 1e-6
    assert read.camera.dtype == torch.float32


def test_camera_that_the_codec_has_normalised() -> None:
    batch = make_batch(SIZE, H36M_17)
    data_batch = collated(batch)
    for sample, camera in zip(data_batch["data_samples"], batch.camera, strict=True):
        normalised = {"f": camera[:2].numpy()[:, None], "c": camera[2:4].numpy()[:, None]}
        sample.set_metainfo({"camera_param": sample.metainfo["camera_param"] | normalised})
    assert (read_batch(data_batch, 0, normalized=True).camera - batch.camera).abs().max() < 1e-6


def test_camera_without_a_lens() -> None:
    data_batch = collated(make_batch(2, H36M_17))
    for sample in data_batch["data_samples"]:
        pinhole = {k: v for k, v in sample.metainfo["camera_param"].items() if k not in "kp"}
        sample.set_metainfo({"camera_param": pinhole})
    assert (read_batch(data_batch, 0, normalized=False).camera[:, 4:] == 0).all()


@pytest.mark.parametrize("frames", [1, 5])
def test_round_trip(frames: int) -> None:
    data_batch = collated(make_batch(SIZE, H36M_17, frames))
    before = deepcopy(contents(data_batch))
    read = read_batch(data_batch, 0, normalized=False)
    adapter = LiftingAdapter()
    decoded = adapter.decode(*read, H36M_17)
    assert decoded.joints.shape == (SIZE, frames, 17, 3)
    encoded = adapter.encode(decoded.joints, decoded.keypoints, HostPoses(*read[:2]), H36M_17)
    assert same_bits(encoded.inputs_2d, read.inputs_2d)
    assert (encoded.inputs_3d - read.inputs_3d).abs().max() < 1e-6
    write_batch(data_batch, HostPoses(*read[:2]), 0)
    assert differences(contents(data_batch), before) == []


# -- refusals --------------------------------------------------------------------------------------


def without(key: str, data_batch: DataBatch) -> DataBatch:
    for sample in data_batch["data_samples"]:
        del sample._metainfo[key]
    return data_batch


def with_camera(change: dict[str, Any], data_batch: DataBatch) -> DataBatch:
    for sample in data_batch["data_samples"]:
        camera = {**sample.metainfo["camera_param"], **change}
        known = {k: v for k, v in camera.items() if v is not None}
        sample.set_metainfo({"camera_param": known})
    return data_batch


def with_inputs(change: Any, data_batch: DataBatch) -> DataBatch:
    data_batch["inputs"] = [change(x) for x in data_batch["inputs"]]
    return data_batch


def without_hip(data_batch: DataBatch) -> DataBatch:
    for sample in data_batch["data_samples"]:
        labels = sample.gt_instance_labels
        labels.lifting_target_label = labels.lifting_target_label[:, 1:]
    return data_batch


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda b: without("camera_param", b), r"carry no 'camera_param'\. .*meta_keys=\("),
        (lambda b: without("target_root", b), r"carry no 'target_root'\. .*zero_center=True"),
        (lambda b: with_camera({"f": None, "w": None}, b), r"must have f, c, w and h, lacks f, w"),
        (lambda b: with_camera({"k": np.zeros(6)}, b), r"k must be three coefficients, got 6"),
        (
            lambda b: with_inputs(lambda x: x.repeat(1, 27), b),
            r"inputs have 27 frames and lifting_target_label has 1: .*seq_len=1.*multiple_target",
        ),
        (
            lambda b: with_inputs(lambda x: torch.cat([x, x[:17]]), b),
            r"concat_vis=False, got \(51,",
        ),
        (lambda b: with_inputs(lambda x: x.reshape(1, 17, 2), b), r"reshape_keypoints=True"),
        (without_hip, r"inputs_3d must be \(batch, frames, 17, 3\).* got \(2, 1, 16, 3\)"),
    ],
)
def test_refusals(change: Any, message: str) -> None:
    runner, hook = Runner(), make_hook()
    hook.before_train(runner)
    with pytest.raises(PoseAugError, match=message):
        hook.before_train_iter(runner, 0, change(collated(make_batch(2, H36M_17))))


def test_batch_size_stays() -> None:
    with pytest.raises(PoseAugError, match="mix must be 'replace'"):
        make_hook(mix="append")


@pytest.mark.parametrize("head", [None, nn.Linear(1, 1)], ids=["no head", "another head"])
def test_other_heads_are_refused(head: nn.Module | None) -> None:
    runner = Runner()
    runner.model.head = head
    with pytest.raises(
        PoseAugError, match="a PoseLifter with a TemporalRegressionHead, got Estimator"
    ):
        make_hook().before_train(runner)
