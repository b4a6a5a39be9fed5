"""Texts on which tokenizers are compared: code, accents, emoji, digits, spaces, special tokens."""

# ruff: noqa: RUF001
TEXTS = [
    "",
    " ",
    "Hello, world!",
    "  two leading, two trailing  ",
    "don't we'LL I'm they'Ve O'Neill's",
    "Café naïve Ünïcödé façade, São Tomé; ÅÄÖ",
    "e\u0301 is not \u00e9, and A\u030a is not \u00c5",
    "日本語と中文, 한국어, العربية, हिन्दी, ไทย, Ελληνικά, Русский",
    "🤗 👩‍👩‍👧‍👦 🏳️‍🌈 👍🏽 🇺🇳 ☃️",
    "1234567890 3.14159 1,000,000 0x7FFF 1e-05 2nd 50%",
    "½²³ ⅷ १२३ ４５６ Ⅻ",
    "a" * 50 + " " + "ab" * 30,
    "line\nline\r\nline\n\n\n\nline\t\ttab\x0b\x0c",
    "    four\n        eight\n            twelve",
    "x =   5\n\n\n  7 \t\t 8",
    " " * 100 + "y",
    "\u00a0no-break\u200bzero\u3000ideographic\u2028line",
    "\x00\x01\x7f",
    "snake_case camelCase SCREAMING_CASE kebab-case a.b.c C++ #include <vector>",
    "https://example.org/a?b=c&d=e#f user@example.org C:\\temp\\new",
    "!!! ??? ... --- *** /// \\\\ $$$ ^^^ ~~~ ``` '' \"\" «» „“ —",
    "<|im_start|>user\nhi<|im_end|>\n<|endoftext|> <|im_start|>",
    "<bos>hello<start_of_turn>user\nhi<end_of_turn>\n<table><tr>  <td></s><s>",
    "▁already ▁marked▁ and <0x0A> in text",
    "def merge(a: list[int], b: list[int]) -> list[int]:\n"
    "    out, i, j = [], 0, 0\n"
    "    while i < len(a) and j < len(b):\n"
    "        if a[i] <= b[j]:\n"
    "            out.append(a[i]); i += 1  # 100% stable\n"
    "        else:\n"
    "            out.append(b[j]); j += 1\n"
    "    return out + a[i:] + b[j:]\n",
    'for (int i = 0; i < 10; ++i) { std::printf("%d\\n", v[i]); }\n\tif (x != y) return;\n',
    '{"name": "Zoë", "tags": ["a", "b"], "n": null, "π": 3.14}',
    "| a | b |\n|---|--:|\n| 1 | 2 |\n\n- [ ] todo\n1. first\n\n> quote\n\n---\n",
]
