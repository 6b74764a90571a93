"""Android phones: a Kotlin class on onnxruntime-android, and DJL's build of the tokenizers library."""

from __future__ import annotations

import json

from edgekit.packaging.manifest import Manifest

SNIPPET_FILE = "usage.kt"
TOKENIZERS_VERSION = "0.33.0"
"""DJL's release whose Android library (`ai.djl.android:tokenizer-native`) and Java half go together."""


def app_files(manifest: Manifest) -> dict[str, str]:
    """Returns the Kotlin class with this bundle's constants filled in."""
    return {SNIPPET_FILE: _kotlin(manifest)}


def instructions(manifest: Manifest) -> str:
    """Returns what to add to an Android project and where the files go."""
    return f"""\
1. Copy `{manifest.model}`, `{manifest.tokenizer}` and `{SNIPPET_FILE}` into the app: the first two, with their
   folders, to `app/src/main/assets/{manifest.name}/`, the last to the sources.
2. Add to `app/build.gradle.kts`:

```kotlin
dependencies {{
    implementation("com.microsoft.onnxruntime:onnxruntime-android:{manifest.versions.runtime_minimum}")
    implementation("ai.djl.huggingface:tokenizers:{TOKENIZERS_VERSION}")
    implementation("ai.djl.android:tokenizer-native:{TOKENIZERS_VERSION}")
}}
```

3. `val classifier = Classifier {{ context.assets.open("{manifest.name}/$it") }}`, once, off the main thread; then
   `classifier.predict(text)`.

{_reduced(manifest)}Check the app's tokenizer on the device against `tokenizer_vectors.json`: a test that encodes every
text there and compares the ids finds any difference."""


def _reduced(manifest: Manifest) -> str:
    """Returns what onnxruntime's own format is for: a build of it with nothing but what the model needs."""
    if manifest.format != "ort":
        return ""
    return """\
The full package opens `model.ort`; so does a reduced build of onnxruntime, which holds nothing else. Give its
`build.py` the file `required_operators.config` (`--include_ops_by_config`), with `--minimal_build extended` and
`--enable_reduced_operator_type_support`.

"""


def _kotlin(manifest: Manifest) -> str:
    entries = "\n".join(
        f"        addConfigEntry({_literal(key)}, {_literal(value)})" for key, value in manifest.session.entries.items()
    )
    inputs = ", ".join(_literal(name) for name in manifest.inputs)
    labels = ", ".join(_literal(label) for label in manifest.labels)
    return f"""\
// Classifies text on Android with the bundle {manifest.name}; MODEL_CARD.md says what to add to the project.
import ai.djl.huggingface.tokenizers.HuggingFaceTokenizer
import ai.onnxruntime.OnnxTensor
import ai.onnxruntime.OrtEnvironment
import ai.onnxruntime.OrtSession
import java.io.InputStream
import java.nio.LongBuffer
import kotlin.math.exp

/** `open` opens a file of the bundle: `Classifier {{ context.assets.open("{manifest.name}/$it") }}`. */
class Classifier(open: (String) -> InputStream) : AutoCloseable {{
    private val labels = listOf({labels})
    private val environment = OrtEnvironment.getEnvironment()
    private val options = OrtSession.SessionOptions().apply {{
        setIntraOpNumThreads({manifest.session.threads})
{entries}
    }}
    private val session = open({_literal(manifest.model)}).use {{ environment.createSession(it.readBytes(), options) }}
    private val tokenizer = open({_literal(manifest.tokenizer)}).use {{
        System.setProperty("OPT_OUT_TRACKING", "true") // DJL asks the network where it runs, unless told not to
        val length = "{manifest.max_length}"
        val settings = mapOf("maxLength" to length, "modelMaxLength" to length, "padding" to "DO_NOT_PAD")
        HuggingFaceTokenizer.newInstance(it, settings)
    }}

    /** Returns the score of every label, 0 to 1. Safe to call from several threads. */
    fun predict(text: String): Map<String, Float> {{
        val ids = tokenizer.encode(text).ids
        val given = mapOf(
            "input_ids" to ids,
            "attention_mask" to LongArray(ids.size) {{ 1L }},
            "token_type_ids" to LongArray(ids.size),
        )
        val shape = longArrayOf(1, ids.size.toLong())
        val inputs = listOf({inputs}).associateWith {{
            OnnxTensor.createTensor(environment, LongBuffer.wrap(given.getValue(it)), shape)
        }}
        try {{
            session.run(inputs).use {{ outputs ->
                val logits = (outputs[0] as OnnxTensor).floatBuffer
                val values = FloatArray(labels.size) {{ logits[it] }}
                val powers = values.map {{ exp(it - values.max()) }}
                return labels.zip(powers.map {{ it / powers.sum() }}).toMap()
            }}
        }} finally {{
            inputs.values.forEach {{ it.close() }}
        }}
    }}

    override fun close() {{
        session.close()
        options.close()
        tokenizer.close()
    }}
}}
"""


def _literal(text: str) -> str:
    """Returns a Kotlin string literal: JSON's escapes, and the dollar sign that would begin a template."""
    return json.dumps(text).replace("$", "\\$")
