"""Chooses how to draw without a display: EGL on a GPU, OSMesa or Mesa's EGL on a CPU.

A platform is tried by drawing one triangle in a child process, so that a driver that crashes or hangs does no harm. On
CPUs both platforms run Mesa's llvmpipe; it is held to one thread and OSMesa, which has less around it, is taken first.
`PYOPENGL_PLATFORM`, when set, is the only one tried. Costs 1.5 s a platform, once a process.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np

PROBE_TIMEOUT_S = 60.0

PLATFORMS = ("egl", "osmesa")
"""In order of preference where EGL reaches a GPU; else OSMesa comes first."""

SOFTWARE_RENDERERS = ("llvmpipe", "softpipe", "swrast", "swiftshader")

GL_ENVIRONMENT: Mapping[str, str] = {
    "LP_NUM_THREADS": "1",  # workers share the cores already, and one thread draws in one order
    "MESA_SHADER_CACHE_DISABLE": "true",  # render processes write no files
    "__GL_SHADER_DISK_CACHE": "0",
}


@dataclass(frozen=True, slots=True)
class GLPlatform:
    """What was chosen: PyOpenGL's platform `name` (`egl`, `osmesa`), the driver's `renderer` string, and why."""

    name: str
    renderer: str
    reason: str

    @property
    def is_software(self) -> bool:
        return any(word in self.renderer.lower() for word in SOFTWARE_RENDERERS)


class GLUnavailable(RuntimeError):  # noqa: N818 - reads as what it says
    """No platform can draw; the message says what each one answered and how to get one."""


def choose_platform(wish: str | None, attempt: Callable[[str], str]) -> GLPlatform:
    """The platform to use.

    Args:
        wish: value of `PYOPENGL_PLATFORM`, or None to choose.
        attempt: gives the renderer string of a platform that can draw, and raises `GLUnavailable` for one that cannot.

    Raises:
        GLUnavailable: when none can.
    """
    if wish:
        return GLPlatform(wish, attempt(wish), "PYOPENGL_PLATFORM asks for it")
    failures: list[str] = []
    working: dict[str, GLPlatform] = {}
    for name in PLATFORMS:
        try:
            platform = GLPlatform(name, attempt(name), "EGL reaches a GPU")
        except GLUnavailable as error:
            failures.append(f"{name}: {error}")
            continue
        if not platform.is_software:
            return platform
        working[name] = platform
    if not working:
        raise GLUnavailable(
            "; ".join(failures) + ". Install a software renderer (Debian: apt-get install libosmesa6 libegl1)"
        )
    name = "osmesa" if "osmesa" in working else "egl"
    reason = "; ".join(["no GPU found, software rendering", *failures])
    return GLPlatform(name, working[name].renderer, reason)


@lru_cache(maxsize=1)
def probe_gl() -> GLPlatform:
    """The platform of this machine, probed once a process.

    Raises:
        GLUnavailable: when nothing can draw.
    """
    return choose_platform(os.environ.get("PYOPENGL_PLATFORM"), _attempt)


def _attempt(platform: str) -> str:
    environment = {**GL_ENVIRONMENT, **os.environ, "PYOPENGL_PLATFORM": platform}
    command = [sys.executable, "-P", "-m", "uvd.renderers.gl", platform]
    try:
        done = subprocess.run(
            command, env=environment, capture_output=True, text=True, timeout=PROBE_TIMEOUT_S, check=False
        )
    except subprocess.TimeoutExpired:
        raise GLUnavailable(f"no answer in {PROBE_TIMEOUT_S:.0f} s") from None
    if done.returncode != 0:
        lines = done.stderr.strip().splitlines() or [f"exit code {done.returncode}"]
        raise GLUnavailable(lines[-1])
    return str(json.loads(done.stdout.splitlines()[-1])["renderer"])


def prepare_gl(platform: str) -> None:
    """Sets this process up for `import pyrender`; call it before anything imports OpenGL.

    Raises:
        GLUnavailable: when OpenGL was already imported for another platform.
    """
    if "OpenGL" in sys.modules and os.environ.get("PYOPENGL_PLATFORM") != platform:
        raise GLUnavailable(
            f"OpenGL was imported for {os.environ.get('PYOPENGL_PLATFORM') or 'a display'}, not {platform}"
        )
    os.environ["PYOPENGL_PLATFORM"] = platform
    for name, value in GL_ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    if not hasattr(np, "infty"):  # pyrender 0.1.45 still uses the name that numpy 2 dropped
        setattr(np, "infty", float("inf"))  # noqa: B010 - numpy's types do not have it


def create_context(platform: str) -> Any:
    """A current OpenGL core context without a window; keep the object for as long as it is used."""
    prepare_gl(platform)
    if platform == "egl":
        from pyrender.platforms import egl

        device = egl.get_device_by_index(int(os.environ.get("EGL_DEVICE_ID", "0")))
        context = egl.EGLPlatform(16, 16, device=device)
    elif platform == "osmesa":
        from pyrender.platforms.osmesa import OSMesaPlatform

        context = OSMesaPlatform(16, 16)
    else:
        raise GLUnavailable(f"{platform!r} is not one of {PLATFORMS}")
    context.init_context()
    context.make_current()
    return context


def _draw_triangle() -> int:
    """Draws a triangle over the whole of a 4 x 4 framebuffer and returns the middle pixel's red value."""
    from OpenGL import GL as gl  # noqa: N811 - the usual name
    from OpenGL.GL import shaders

    vertex = "#version 330 core\nvoid main(){vec2 p=vec2(gl_VertexID%2,gl_VertexID/2)*4.0-1.0;gl_Position=vec4(p,0,1);}"
    fragment = "#version 330 core\nout vec4 colour;void main(){colour=vec4(1);}"
    gl.glBindVertexArray(gl.glGenVertexArrays(1))
    program = shaders.compileProgram(
        shaders.compileShader(vertex, gl.GL_VERTEX_SHADER), shaders.compileShader(fragment, gl.GL_FRAGMENT_SHADER)
    )
    buffer = gl.glGenRenderbuffers(1)
    gl.glBindRenderbuffer(gl.GL_RENDERBUFFER, buffer)
    gl.glRenderbufferStorage(gl.GL_RENDERBUFFER, gl.GL_RGBA8, 4, 4)
    gl.glBindFramebuffer(gl.GL_FRAMEBUFFER, gl.glGenFramebuffers(1))
    gl.glFramebufferRenderbuffer(gl.GL_FRAMEBUFFER, gl.GL_COLOR_ATTACHMENT0, gl.GL_RENDERBUFFER, buffer)
    gl.glViewport(0, 0, 4, 4)
    gl.glUseProgram(program)
    gl.glDrawArrays(gl.GL_TRIANGLES, 0, 3)
    return int(np.frombuffer(gl.glReadPixels(1, 1, 1, 1, gl.GL_RGB, gl.GL_UNSIGNED_BYTE), np.uint8)[0])


def main(platform: str) -> int:
    """The probe's child: draws once and prints the renderer's name as JSON."""
    context = create_context(platform)
    from OpenGL import GL as gl  # noqa: N811 - the usual name

    red = _draw_triangle()
    if red != 255:
        print(f"a white triangle came out as {red}", file=sys.stderr)
        return 1
    print(json.dumps({"renderer": gl.glGetString(gl.GL_RENDERER).decode()}), flush=True)
    del context
    return 0


if __name__ == "__main__":
    # os._exit: some drivers crash while they are unloaded, after the work is done.
    os._exit(main(sys.argv[1]))
