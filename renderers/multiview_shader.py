"""The shading of object views: metallic-roughness materials under three fixed lights and a sky, as GLSL 3.30.

It stands in for pyrender's own mesh shader and keeps its uniform names. Differences that matter here: parts without
texture coordinates compile, both sides of a face are lit, alpha masks cut, metals have something to mirror, and the
lights are constants, so that their order of summation, and with it the last bit of a colour, never changes.
"""

from __future__ import annotations

from typing import Any

LIGHTS = (
    ((0.55, 0.65, 0.75), 0.62),  # key: front right, above
    ((-0.80, 0.25, 0.45), 0.30),  # fill: front left, low
    ((-0.15, 0.50, -0.90), 0.42),  # rim: behind, above
)
"""(direction towards the light, radiance over pi) in world axes, +Y up, +Z to the camera at azimuth 0."""

SKY, GROUND = 0.46, 0.26
"""Ambient light from straight above and from straight below."""

VERTEX = """#version 330 core
layout(location = 0) in vec3 position;
layout(location = NORMAL_LOC) in vec3 normal;
#ifdef TEXCOORD_0_LOC
layout(location = TEXCOORD_0_LOC) in vec2 texcoord_0;
out vec2 uv_0;
#endif
#ifdef COLOR_0_LOC
layout(location = COLOR_0_LOC) in vec4 color_0;
out vec4 tint;
#endif
uniform mat4 V;
uniform mat4 P;
out vec3 world;
out float distance_ahead;
out vec3 shading_normal;

void main()
{
    gl_Position = P * (V * vec4(position, 1.0));  // parts are baked: model and instance matrices are the identity
    world = position;
    distance_ahead = -(V * vec4(position, 1.0)).z;
    shading_normal = normal;
#ifdef TEXCOORD_0_LOC
    uv_0 = texcoord_0;
#endif
#ifdef COLOR_0_LOC
    tint = color_0;
#endif
}
"""

FRAGMENT = """#version 330 core
struct Material {
    vec3 emissive_factor;
    vec4 base_color_factor;
    float metallic_factor;
    float roughness_factor;
    sampler2D base_color_texture;
    sampler2D metallic_roughness_texture;
    sampler2D normal_texture;
    sampler2D occlusion_texture;
    sampler2D emissive_texture;
};
uniform Material material;
uniform float alpha_cutoff;   // below it a fragment is dropped
uniform float opaque;         // 1: alpha is ignored from there on
uniform float unlit;          // 1: the colour is shown as it is
uniform vec3 cam_pos;
uniform mat4 V;
in vec3 world;
in float distance_ahead;
in vec3 shading_normal;
#ifdef TEXCOORD_0_LOC
in vec2 uv_0;
#endif
#ifdef COLOR_0_LOC
in vec4 tint;
#endif
out vec4 frag_color;

vec3 to_linear(vec3 c)
{
    return mix(c / 12.92, pow((c + 0.055) / 1.055, vec3(2.4)), step(0.04045, c));
}

vec3 to_srgb(vec3 c)
{
    return mix(c * 12.92, 1.055 * pow(max(c, vec3(0.0031308)), vec3(1.0 / 2.4)) - 0.055, step(0.0031308, c));
}

vec3 surface_normal(vec3 eye)
{
    vec3 dx = dFdx(world);
    vec3 dy = dFdy(world);
    vec3 face = cross(dx, dy);
    face = dot(face, eye) < 0.0 ? -face : face;
    float size = dot(shading_normal, shading_normal);
    vec3 n = size > 1e-12 ? shading_normal * inversesqrt(size) : normalize(face);
    return dot(n, face) < 0.0 ? -n : n;
}

vec3 bumped_normal(vec3 n)
{
#ifdef HAS_NORMAL_TEX
    vec3 dx = dFdx(world);
    vec3 dy = dFdy(world);
    vec2 s = dFdx(uv_0);
    vec2 t = dFdy(uv_0);
    float area = s.x * t.y - t.x * s.y;
    vec3 tangent = (dx * t.y - dy * s.y) * sign(area);
    tangent -= n * dot(n, tangent);
    if (abs(area) > 1e-14 && dot(tangent, tangent) > 1e-20) {
        tangent = normalize(tangent);
        vec3 side = (dy * s.x - dx * t.x) * sign(area);
        vec3 bitangent = cross(n, tangent);
        bitangent = dot(bitangent, side) < 0.0 ? -bitangent : bitangent;
        vec3 bump = 2.0 * texture(material.normal_texture, uv_0).rgb - 1.0;
        vec3 bent = tangent * bump.x + bitangent * bump.y + n * max(bump.z, 0.05);
        n = normalize(bent);
    }
#endif
    return n;
}

vec3 light(vec3 n, vec3 eye, vec3 towards, float radiance, vec3 diffuse, vec3 f0, float rough)
{
    float facing = max(dot(n, towards), 0.0);
    vec3 h = normalize(towards + eye);
    float a2 = rough * rough * rough * rough;
    float nh = max(dot(n, h), 0.0);
    float spread = nh * nh * (a2 - 1.0) + 1.0;
    float nv = max(dot(n, eye), 0.05);
    float k = (rough + 1.0) * (rough + 1.0) / 8.0;
    float shadowing = 1.0 / (4.0 * (facing * (1.0 - k) + k) * (nv * (1.0 - k) + k));
    vec3 fresnel = f0 + (1.0 - f0) * pow(1.0 - max(dot(h, eye), 0.0), 5.0);
    return radiance * facing * (diffuse + fresnel * min(a2 / (spread * spread) * shadowing, 4.0));
}

void main()
{
    vec4 base = material.base_color_factor;
#ifdef HAS_BASE_COLOR_TEX
    vec4 texel = texture(material.base_color_texture, uv_0);
    base *= vec4(to_linear(texel.rgb), texel.a);
#endif
#ifdef COLOR_0_LOC
    base *= tint;
#endif
#ifdef ALPHA_TEST
    if (base.a < alpha_cutoff) discard;
#endif
    vec3 eye = normalize(cam_pos - world);
#ifdef GEOMETRY_PASS
    frag_color = vec4(mat3(V) * surface_normal(eye), distance_ahead);
#else
    float rough = material.roughness_factor;
    float metal = material.metallic_factor;
#ifdef HAS_METALLIC_ROUGHNESS_TEX
    vec2 packed_mr = texture(material.metallic_roughness_texture, uv_0).rg;
    rough *= packed_mr.r;
    metal *= packed_mr.g;
#endif
    rough = clamp(rough, 0.25, 1.0);
    metal = clamp(metal, 0.0, 1.0);
    vec3 n = bumped_normal(surface_normal(eye));
    vec3 f0 = mix(vec3(0.04), base.rgb, metal);
    vec3 diffuse = base.rgb * (1.0 - metal);
    // A plain sky and ground: what diffuse surfaces gather, and what metals mirror.
    float sky = mix(GROUND_LIGHT, SKY_LIGHT, 0.5 + 0.5 * n.y);
    float mirrored = mix(GROUND_LIGHT, 1.6 * SKY_LIGHT, smoothstep(-0.4, 0.6, reflect(-eye, n).y));
    vec3 ambient = diffuse * sky + f0 * mix(mirrored, sky, 0.5 * rough);
#ifdef HAS_OCCLUSION_TEX
    ambient *= mix(1.0, texture(material.occlusion_texture, uv_0).r, 0.8);
#endif
    vec3 color = ambient;
LIGHT_SUM
    vec3 emissive = material.emissive_factor;
#ifdef HAS_EMISSIVE_TEX
    emissive *= to_linear(texture(material.emissive_texture, uv_0).rgb);
#endif
    color = mix(color + emissive, base.rgb, unlit);
    frag_color = vec4(to_srgb(clamp(color, 0.0, 1.0)), max(base.a, opaque));
#endif
}
"""


def fragment_source() -> str:
    """The fragment shader with its lights filled in."""
    lines = [
        f"    color += light(n, eye, normalize(vec3({x}, {y}, {z})), {radiance}, diffuse, f0, rough);"
        for (x, y, z), radiance in LIGHTS
    ]
    source = FRAGMENT.replace("LIGHT_SUM", "\n".join(lines))
    return source.replace("SKY_LIGHT", str(SKY)).replace("GROUND_LIGHT", str(GROUND))


def program_cache() -> Any:
    """A pyrender shader cache that compiles the sources above instead of pyrender's files; imports OpenGL."""
    from pyrender.shader_program import ShaderProgram, ShaderProgramCache

    sources = {"mesh.vert": VERTEX, "mesh.frag": fragment_source()}

    class Program(ShaderProgram):
        def _load(self, shader_filename: str) -> str:
            lines: list[str] = []
            for line in sources[shader_filename].splitlines():
                word, _, name = line.partition(" ")
                lines.append(f"#if {int(name in self.defines)}" if word == "#ifdef" else line)
            text = "\n".join(lines)
            for define, value in self.defines.items():
                text = text.replace(define, str(value))
            return text

    class Cache(ShaderProgramCache):
        geometry = False
        """Whether programs are those that give normals and distances in place of colours."""
        alpha_test = False
        """Whether fragments may be dropped; where none may be, hidden ones need not be shaded."""

        def get_program(
            self,
            vertex_shader: str,
            fragment_shader: str,
            geometry_shader: str | None = None,
            defines: dict[str, Any] | None = None,
        ) -> Any:
            extra = {"GEOMETRY_PASS": self.geometry, "ALPHA_TEST": self.alpha_test}
            defines = {**(defines or {}), **{name: 1 for name, wanted in extra.items() if wanted}}
            key = tuple(sorted(defines.items()))
            if key not in self._program_cache:
                self._program_cache[key] = Program(vertex_shader, fragment_shader, geometry_shader, defines)
            return self._program_cache[key]

    return Cache()
