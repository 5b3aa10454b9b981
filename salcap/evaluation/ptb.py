"""Penn Treebank tokens without Java: the words that CoreNLP 3.4.1's PTBTokenizer gives, as caption evaluation calls it.

A lexer: at each place the longest match of all rules is the next token, the first rule's where two are as long. The
rules were written from what the Java program was seen to do, not from its grammar, which is under another licence;
``scripts/tokenizer_parity.py`` counts the captions that differ.

On purpose different: Java looks beyond the end of a caption, so the next one decides whether a last "c." is one token
or two. Here the end of a caption ends its sentence, and captions do not touch each other.
"""

from __future__ import annotations

import re
import unicodedata


def tokenize(caption: str) -> list[str]:
    """Split a caption into lower-case Penn Treebank tokens, punctuation included; an empty one has none.

    Line breaks count as spaces. A space within a token (phone numbers, "1 1/2") becomes a no-break space, and
    characters that the Java program does not know, such as emoji, are left out, as it does.
    """
    text = _ENTITY.sub(lambda entity: _ENTITIES[entity[0]], " ".join(caption.splitlines()))
    tokens: list[str] = []
    place = 0
    while place < len(text):
        if text[place].isspace():
            place += 1
        elif plain := _PLAIN.match(text, place):
            tokens.append(plain[0])
            place = plain.end()
        elif found := [(match, spelling) for rule, spelling in _RULES if (match := rule.match(text, place))]:
            match, spelling = max(found, key=lambda pair: pair[0].end())  # of equals the first
            tokens += match.expand(spelling).split() if spelling else [match[0].translate(_WITHIN_TOKEN)]
            place = match.end()
        else:
            tokens += _RESPELLED.get(text[place], _SYMBOL.findall(text[place]))
            place += 1
    return [token.lower() for token in tokens]


def _any_of(words: str) -> str:
    return "(?i:" + "|".join(sorted(words.split(), key=len, reverse=True)) + ")"


# Characters. Python's \w lacks combining marks, and takes in numerals (², Ⅳ) and letters beyond the first plane.
_NUMERALS = (
    "²³¹¼-¾\u2070-\u2089\u2150-\u2182\u2185-\u218b\u2460-\u24ff\u2776-\u2793\u3007\u3021-\u3029\U00010000-\U0010ffff"
)
_MARKS = "".join(chr(c) for c in range(0x2C2, 0xF00) if unicodedata.category(chr(c)) in ("Mn", "Mc", "Sk"))
_LETTER = rf"[^\W\d_{_NUMERALS}]"
_WORD = rf"(?:[^\W_{_NUMERALS}]|[{_MARKS}\xad])"  # of a word after its first letter
_APOSTROPHE = "['’\x92]"
_END = rf"(?!{_WORD})"

# Abbreviations keep their period; after the first kind, which may end a sentence, a capital adds another one.
_ENDING = _any_of(
    "al ala apr ariz assn aug bancorp bhd bldg blvd bros calif co colo conn corp cos ct dak dec esq est etc ext feb "
    "fla fri ga inc ind intl jan jr jul jun kan kans ky ltd mar md mich minn mo mon mont neb nev nov oct okla penn plc "
    "ppte ppty pte ptes pty ptys rd rt sep sept seq sq sr sys tel tenn thu thurs tue tues univ va vt wed wis wisc wyo"
)
_LEADING = _any_of(
    "adj adm adv alex asst assoc atty ave brig capt cf cie cmdr col cpl dept det dr drs elec ens ft gen gov govs hon "
    "insp invt jos lieut lt maj messrs mfg mlle mme mr mrs ms msgr mt mtg natl pfc ph pres prof pvt rep reps rev sen "
    "sens sfc sgt spc st ste supt treas vs wm"
)
_NUMBERED = _any_of("art ca fig figs no nos op pp prop")  # only before a number
_INITIALS = r"(?:(?i:ph)|[A-Za-z])(?:\.[A-Za-z])+\."  # U.S., p.m.
# Words that begin a sentence: a letter before them is no initial, and "U.S." gets another period.
_STARTERS = (
    "A|About|According|Additionally|After|An|As|At|But|Earlier|He|Her|Here|However|If|In|It|Last|Many|More|Now|Once|One|"
    "Other|Our|She|Since|So|Some|Such|That|The|Their|Then|There|These|They|This|We|What|When|While|Yet|You"
)
_SENTENCE = rf"(?=\s*$|\s+(?:</?[A-Za-z]|M[rs]\.|(?:{_STARTERS}|{_STARTERS.upper()})(?:\s|$)))"

_SPLIT_WORDS = "(?i:can(?=not)|gon(?=na)|wan(?=na)|got(?=ta)|gim(?=me)|lem(?=me))"
_ELISION = rf"[dlnoDLNO]{_APOSTROPHE}(?!(?:ll|re|ve){_END}){_LETTER}{{2,}}{_WORD}*"  # o'clock, d'or
_DOTTED = rf"{_LETTER}{_WORD}*(?:\.{_LETTER}{_WORD}*)+"
# what a hyphen joins
_HEAD = rf"(?:{_INITIALS}|[A-Za-z]\.|{_LEADING}\.|{_DOTTED}|\d+(?:[.,]\d+)+|{_ELISION}|{_WORD}+)"
_PART = rf"(?:{_INITIALS}|{_ELISION}|{_WORD}+)"
_SLASHED = r"[A-Za-z0-9]+(?:-[A-Za-z]+){0,2}"
_FACE = r"[\^x=~<>-]"
_URL, _URL_END = r"[^\s\"<>|()]", r"[^\s\"<>|.!?(){},-]"
_LABEL = r"(?!\d)[^\s\"`'<>|.!?(){}\[\],_$:/@-]+"
_NO_SPACE = r"[^\s\"<>|().]"
_FILE = (
    "(?i:bat|bmp|cgi|cpp|c|dll|docx?|exe|gif|gz|html?|h|jar|java|jpe?g|mov|mp3|pdf|php|pl|png|ppt|ps|py|sql|tar|txt|"
    "wav|x|xml|zip)"
)

# by far the most tokens: a word or a mark that no rule could join to what follows
_PLAIN = re.compile(rf"(?!(?:{_SPLIT_WORDS})(?i:not|na|ta|me)\b)(?:[A-Za-z]+|[.,;])(?=\s+\w|\s*$)")

# What a token may be, and its spelling: None as it stands, else a template, by spaces for several tokens.
_RULES: list[tuple[re.Pattern[str], str | None]] = [
    (re.compile(pattern), template)
    for pattern, template in [
        # words
        (rf"({_SPLIT_WORDS})((?i:not|na|ta|me))(?!{_WORD}|{_APOSTROPHE}{_LETTER})", r"\1 \2"),
        (rf"{_WORD}+", None),
        (rf"([A-Za-z]*?)(?<![nN])(?i:(n){_APOSTROPHE}(t))([A-Za-z]*)", r"\1 \2'\3\4"),
        (r"([A-Za-z]*?)(?<![nN])(?i:(n)[`‘‛](t))([A-Za-z]*)", r"\1 \2`\3\4"),
        (rf"{_APOSTROPHE}((?i:s|m|d|ll|re|ve))(?![A-Za-z])", r"'\1"),
        (rf"{_APOSTROPHE}(?i:n(?:{_APOSTROPHE}|{_END})|em|till?)", None),
        (r"(?i:('t)(is|was))", r"\1 \2"),
        (_ELISION, None),
        (r"[A-Za-z]+[aeiouyAEIOUY]['’‘][aeiouAEIOU][A-Za-z]*", None),  # Hawai'i, ma'am
        (rf"(?i:(?:ol|[djly]){_APOSTROPHE})", None),
        (rf"(?i:qu'{_WORD}+|c'est|c'mon|cap'n|e'er|ev'ry|li'l|nat'l|s'mores)", None),
        (rf"{_WORD}+(?:[-_‐‑]{_WORD}+)+", None),
        (rf"{_HEAD}(?:[-‐‑]{_PART})+", None),
        (rf"{_SLASHED}(?:\\?/{_SLASHED}){{1,2}}", None),
        (rf"{_LETTER}{_WORD}*(?:[.!?]{_LETTER}{_WORD}*)+", None),  # a space forgotten: street.The
        (rf"[A-Za-z0-9]+(?:\.[A-Za-z0-9]+)*\.{_FILE}{_END}", None),
        (rf"{_WORD}*(?:&[aeiouAEIOU](?:acute|grave|uml);{_WORD}*)+", None),
        (r"[A-Z]+(?:&[A-Z]+)+|(?i:c)\+\+|(?i:[cf])#", None),
        # abbreviations
        (rf"({_INITIALS}){_SENTENCE}", r"\1 ."),
        (rf"([A-Za-z])\.{_SENTENCE}", r"\1 ."),
        (rf"({_ENDING}\.)(?:(?=\s+[A-Z])|{_SENTENCE})", r"\1 ."),
        (rf"{_INITIALS}|[A-Za-z]\.|{_ENDING}\.|{_LEADING}\.|{_NUMBERED}\.(?=\s*\d|[,:;])", None),
        # numbers
        (r"[+-]?(?:\d+(?:[.:,]\d+)*|(?:[.:,]\d+)+)", None),
        (r"(?:\d{1,4}[- \xa0])?\d{1,4}(?:\\?/|⁄)\d{1,4}", None),
        (r"(?:\(\d{2,3}\)[ \xa0]?|\+{0,2}(?:\d{2,4}[- \xa0])?\d{2,4}[- \xa0])\d{3,4}[- \xa0]?\d{3,5}", None),  # phone
        (rf"{_APOSTROPHE}(?:\d0s|\d\d(?=\s|$))", None),  # '90s
        (r"[A-Z]{1,3}\$", None),
        # the net
        (rf"(?i:https?://{_URL}*\.{_URL}*{_URL_END})", None),
        (rf"(?i:(?:{_LABEL}\.)+(?:com|edu|net|org)(?:/{_URL}+{_URL_END})?)", None),
        (rf"[A-Za-z0-9]{_NO_SPACE}*(?:\.{_NO_SPACE}+)*@{_NO_SPACE}+(?:\.{_NO_SPACE}+)*|@[A-Za-z_]\w*|@@+", None),
        (rf"#{_LETTER}+|##+", None),
        (r"<[A-Za-z][\w:.@-]*(?:\s+[A-Za-z][\w:.-]*(?:=\"[^\"]*\")?)*\s*/?>|</[A-Za-z][\w:.-]*\s*>|<[!?][^<>]*>", None),
        (r"[<>]?[:;=][-'o]?[DdPpO()@\[\]{|\\](?![A-Za-z0-9])", None),  # :-)
        (rf"{_FACE}_{_FACE}|\({_FACE}[-_.]?{_FACE}\)", None),
        # punctuation
        (r"\.{3,5}|(?:\.[ \xa0]){2,4}\.", "..."),
        (r"-{2,4}|&(?:[mn]dash|MD);", "--"),
        (r"&#\d+;|&[A-Z]{2};|(?i:-[lr][rcs]b-)", None),
        (r"-{5,}|[!?]+|_{2,}|\*+|<<|>>|\\\*", None),
        (rf"\"(?={_WORD}|\$)", "``"),
        ("\"|''", "''"),
        ("``", None),
        (rf"{_APOSTROPHE}(?={_LETTER}(?:{_WORD}|'))", "`"),
        ("&lt;", "<"),
        ("&gt;", ">"),
    ]
]

_ENTITIES = {"&amp;": "&", "&apos;": "'", "&quot;": '"', "&nbsp;": " "}
_ENTITY = re.compile("|".join(_ENTITIES))
_WITHIN_TOKEN = str.maketrans({" ": "\xa0", "\xad": "", "(": "-lrb-", ")": "-rrb-"})
# a spelling, and the characters that get it
_SPELLINGS = (
    "-lrb- ( -rrb- ) -lsb- [ -rsb- ] -lcb- { -rcb- } `` “«\x93 '' ”»\x94 ` ‘‛‹\x91 ' ’›\x92 -- –—―\x96\x97 ... … "
    "$ €¤₠\x80 # £ cents ¢ - \xad 1/4 ¼ 1/2 ½ 3/4 ¾ 1/3 ⅓ 2/3 ⅔"
)
_RESPELLED = {
    character: [spelling]
    for spelling, characters in zip(_SPELLINGS.split(" ")[::2], _SPELLINGS.split(" ")[1::2], strict=True)
    for character in characters
}
# symbols that are tokens of their own
_SYMBOL = re.compile(
    r"[!-/:-@\[-`{-~¡¥-©¬®-´¶-¹¿×÷\u037e\u0387\u0589\u05be\u05c0\u05c3\u05f3\u05f4\u060c\u061b\u061f\u066a\u066d\u06d4"
    r"\u0964\u0965\u0e3f\u2016\u2017\u201a\u201e-\u2023\u2030-\u2038\u203b\u203e-\u2042\u2070-\u208e\u20a4\u2100-\u214f"
    r"\u2155-\u215e\u2190-\u2bff\u3001\u3002\u3012\u30fb\uff01-\uff0f\uff1a-\uff20\uff3b-\uff40\uff5b-\uff65\uffe0\uffe1\uffe5]"
)
