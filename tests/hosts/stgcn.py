"""ST-GCN: `main_graph.py`, one frame."""

from __future__ import annotations

from .runner import Edit, Host

SHORT = (
    *("--root_path", "data/", "-k", "gt", "--pad", "0", "--workers", "0"),
    *("--downsample", "50", "--batchSize", "64"),
)

HOST = Host(
    name="ST-GCN",
    page="stgcn",
    script="main_graph.py",
    data="h36m17",
    # Its epochs run up to but not including --nepoch.
    arguments=(*SHORT, "--pro_train", "1", "--nepoch", "3", "--save_model", "1"),
    evaluate=(
        *(*SHORT, "--nepoch", "2", "--stgcn_reload", "1"),
        *("--previous_dir", "checkpoint", "--stgcn_model", "{checkpoint}"),
    ),
    evaluated=r"^Average +\d",
    checkpoint="results/1_frame/st_gcn/no_pose_refine/gt/model_st_gcn_*.pth",
    losses=r"^loss of 1 sample: (\S+)",
    adapter="stgcn.py",
    hook=(
        Edit(
            "main_graph.py",
            r"^import torch$",
            ("...", "from poseaug_plugin import PoseAugHook", "from stgcn import STGCNAdapter"),
        ),
        Edit(
            "main_graph.py",
            r"^optimizer_all_scheduler = ",
            (
                "...",
                "train.hook = PoseAugHook("
                "model['st_gcn'], skeleton='h36m_17', adapter=STGCNAdapter(crop_uv=opt.crop_uv))",
            ),
        ),
        Edit(
            "train_graph_time.py",
            r"^        \[input_2D, gt_3D, batch_cam, scale, bb_box\] = get_varialbe",
            (
                "...",
                "if split == 'train':",
                "    input_2D, gt_3D, (batch_cam, _) = train.hook.augment("
                "input_2D, gt_3D, (batch_cam, data[5]), return_camera=True)",
            ),
        ),
    ),
    runs_at_all=(
        # What numpy had once, and arrays of one element that printed like a number.
        Edit("data/load_data_hm36.py", r"np\.float\(", ((r"np\.float", "float"),)),
        Edit("train_graph_time.py", r"'loss_(diff|sum)'\]\.avg", ((r"\.avg", ".avg.item()"),), 2),
    ),
    needs=("h5py", "six", "tqdm"),
)
