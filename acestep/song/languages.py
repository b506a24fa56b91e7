"""The languages of the vocals by the names that people have for them."""

from __future__ import annotations

import re
import unicodedata

from acestep.song.request import LANGUAGES

# English name, then the language's own, then others in use; codes are found without a name.
_NAMES = {
    "ar": "arabic العربية",
    "az": "azerbaijani azeri azərbaycanca",
    "bg": "bulgarian български",
    "bn": "bengali bangla বাংলা",
    "ca": "catalan català valencian",
    "cs": "czech čeština",
    "da": "danish dansk",
    "de": "german deutsch",
    "el": "greek ελληνικά",
    "en": "english",
    "es": "spanish español castilian",
    "fa": "persian فارسی farsi",
    "fi": "finnish suomi",
    "fr": "french français",
    "he": "hebrew עברית iw",
    "hi": "hindi हिन्दी",
    "hr": "croatian hrvatski",
    "ht": "haitian haitian-creole kreyòl",
    "hu": "hungarian magyar",
    "id": "indonesian bahasa-indonesia",
    "is": "icelandic íslenska",
    "it": "italian italiano",
    "ja": "japanese 日本語",
    "ko": "korean 한국어",
    "la": "latin latina",
    "lt": "lithuanian lietuvių",
    "ms": "malay bahasa-melayu melayu",
    "ne": "nepali नेपाली",
    "nl": "dutch nederlands flemish",
    "no": "norwegian norsk nb nn bokmål nynorsk",
    "pa": "punjabi panjabi ਪੰਜਾਬੀ",
    "pl": "polish polski",
    "pt": "portuguese português brazilian-portuguese",
    "ro": "romanian română",
    "ru": "russian русский",
    "sa": "sanskrit संस्कृतम्",
    "sk": "slovak slovenčina",
    "sr": "serbian српски srpski",
    "sv": "swedish svenska",
    "sw": "swahili kiswahili",
    "ta": "tamil தமிழ்",
    "te": "telugu తెలుగు",
    "th": "thai ไทย",
    "tl": "tagalog filipino fil",
    "tr": "turkish türkçe",
    "uk": "ukrainian українська",
    "ur": "urdu اردو",
    "vi": "vietnamese tiếng-việt",
    "yue": "cantonese 粤语 粵語 廣東話 广东话 zh-yue",
    "zh": "chinese 中文 mandarin 汉语 漢語 华语 国语 普通话 simplified-chinese traditional-chinese",
}
_BRACKETS = re.compile(r"\s*[(（].*[)）]\s*")
# A code with a script or a region: `zh-Hans`, `pt_BR`, `es-419`.
_TAG = re.compile(r"([a-z]{2,3})(?:[-_](?:hans|hant|latn|cyrl))?(?:[-_](?:[a-z]{2}|\d{3}))?")


def _spelled(name: str) -> str:
    return unicodedata.normalize("NFKC", name).casefold()


_CODES = {_spelled(name): code for code, names in _NAMES.items() for name in names.split()}


def code_of(name: str) -> str | None:
    """The code of a language given as code, tag (`zh-CN`, `pt_BR`) or name, or None."""
    name = _BRACKETS.sub("", _spelled(name)).strip()
    tag = _TAG.fullmatch(name)
    for known in ("-".join(re.split(r"[\s_-]+", name)), tag[1] if tag else ""):
        if known in LANGUAGES:
            return known
        if known in _CODES:
            return _CODES[known]
    return None
