"""Coarser meshes for what is only looked at: a CPU that draws pays for every triangle, and robots come with 170,000."""

from __future__ import annotations

from typing import Any

import numpy as np

LEAVE_FACES, FEWEST_FACES = 200, 60
"""Meshes of no more triangles stay as they are; and none is left with fewer."""

LARGEST_SHARE = 0.05
"""Details below this share of a mesh's size are lost, however large they are."""


def simplify_looks(mujoco: Any, spec: Any, model: Any, cell_m: float) -> None:
    """Make the meshes of a mujoco.MjSpec coarser, except those that touch, are textured or are small already. Masses
    and contacts stay as they were.

    Args:
        model: the mujoco.MjModel of the same description.
        cell_m: vertices nearer than about this become one.
    """
    solid = (model.geom_contype != 0) | (model.geom_conaffinity != 0)
    material = model.geom_matid
    textured = (material >= 0) & (model.mat_texid[material] >= 0).any(axis=1) if model.nmat else material >= 0
    is_mesh = model.geom_type == mujoco.mjtGeom.mjGEOM_MESH
    kept = set(model.geom_dataid[is_mesh & (solid | textured)].tolist())
    for i in sorted(set(model.geom_dataid[is_mesh].tolist()) - kept):
        first, count = model.mesh_faceadr[i], model.mesh_facenum[i]
        faces = model.mesh_face[first : first + count]
        first, count = model.mesh_vertadr[i], model.mesh_vertnum[i]
        vertices = model.mesh_vert[first : first + count].astype(np.float64)
        if len(faces) <= LEAVE_FACES:
            continue
        # The compiler has turned the mesh into the axes of its inertia; the description's own are wanted.
        turn = np.zeros(9)
        mujoco.mju_quat2Mat(turn, model.mesh_quat[i])
        vertices = vertices @ turn.reshape(3, 3).T + model.mesh_pos[i]
        size = max(cell_m, float(np.ptp(vertices, axis=0).max()) * LARGEST_SHARE)
        fewer = cluster(vertices, faces, size)
        while len(fewer[1]) < FEWEST_FACES:  # a small part: in more detail
            size /= 2
            fewer = cluster(vertices, faces, size)
        vertices, faces = fewer
        mesh = spec.mesh(model.mesh(i).name)
        mesh.file, mesh.scale = "", (1, 1, 1)
        mesh.refpos, mesh.refquat = (0, 0, 0), (1, 0, 0, 0)
        mesh.uservert, mesh.userface = vertices.ravel().tolist(), faces.ravel().tolist()
        mesh.inertia = mujoco.mjtMeshInertia.mjMESH_INERTIA_SHELL  # of any surface, closed or not; it weighs nothing


def cluster(vertices: np.ndarray, faces: np.ndarray, cell_m: float) -> tuple[np.ndarray, np.ndarray]:
    """Join the vertices (V, 3) within each cubic cell into their mean, and leave out the triangles (F, 3) that this
    makes degenerate or equal (Rossignac and Borrel, Multi-resolution 3D approximations, 1993)."""
    # Rows as single numbers in the same order: `unique` takes ten times as long over rows.
    cells = np.floor(vertices / cell_m).astype(np.int64)
    cells -= cells.min(0)
    _, member = np.unique(np.ravel_multi_index(tuple(cells.T), tuple(cells.max(0) + 1)), return_inverse=True)
    count = np.bincount(member)
    joined = np.stack([np.bincount(member, vertices[:, axis]) for axis in range(3)], 1) / count[:, None]
    faces = member[faces]
    distinct = (faces[:, 0] != faces[:, 1]) & (faces[:, 1] != faces[:, 2]) & (faces[:, 2] != faces[:, 0])
    faces = faces[distinct]
    corners = np.sort(faces, axis=1)
    _, first = np.unique(np.ravel_multi_index(tuple(corners.T), (len(count),) * 3), return_index=True)
    faces = faces[np.sort(first)]
    used, faces = np.unique(faces, return_inverse=True)
    return joined[used], faces.reshape(-1, 3)
