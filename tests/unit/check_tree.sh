#!/bin/sh
# SPDX-License-Identifier: PostgreSQL
# Rules that hold over the whole tree, as far as a script can see them: the licence line in every
# source file, object magics that are unique, functions of at most 120 and files of at most 1500
# lines, no names of somebody's working folders. Exit status 77 (skipped) without universal-ctags.
set -u
cd "${HOWDAH_SRCDIR:-.}" || exit 1

FUNCTION_LINES_MAX=120
FILE_LINES_MAX=1500

work=$(mktemp -d) || exit 1
trap 'rm -rf "$work"' EXIT
bad=0

# Tracked files in a clone; in an unpacked tarball, everything but what was made there.
git ls-files 2>/dev/null | while IFS= read -r f; do [ -f "$f" ] && printf '%s\n' "$f"; done >"$work/all"
tracked=yes
if ! [ -s "$work/all" ]; then
	tracked=no
	find . -type f ! -name '*.o' ! -name '*.a' ! -path '*/.deps/*' ! -path './autom4te.cache/*' \
		! -path './build-aux/*' ! -path './m4/*' ! -name '*.pb-c.[ch]' \
		! -path './_build/*' ! -path './_inst/*' | sed 's|^\./||' >"$work/all"
fi
grep -E '\.(c|h)$' "$work/all" | grep -v '^config\.h' | sort >"$work/c"
grep -E '\.(c|h|sql|py|sh|mk|ac|md|conf)$|/Makefile\.am$|^Makefile\.am$|^quickstart$|^\.ci/run$' "$work/all" |
	grep -v '^config\.h' | grep -v '^tests/fuzz/corpus/' | sort >"$work/sources"
[ -s "$work/c" ] || { echo "no sources found in $(pwd)"; exit 1; }

report() {
	if [ -s "$work/found" ]; then
		echo "$1"
		sed 's/^/    /' "$work/found"
		bad=1
	fi
}

while IFS= read -r f; do
	head -n 5 "$f" | grep -q 'SPDX-License-Identifier: PostgreSQL' || echo "$f"
done <"$work/sources" >"$work/found"
report "no SPDX line (\"SPDX-License-Identifier: PostgreSQL\") in the first five lines:"

# The same value under the same name in two files is a shared definition gone astray, too.
xargs grep -Hn '^#define [A-Z0-9_]*MAGIC[A-Z0-9_]* *0x' <"$work/c" |
	sed 's/^\([^:]*\):[0-9]*:#define *\([A-Z0-9_]*\) *0x\([0-9a-fA-F]*\).*/\3 \2 \1/' |
	awk '{ v = tolower($1); sub(/^0+/, "", v); n[v]++; who[v] = who[v] " " $2 " (" $3 ")" }
	     END { for (v in n) if (n[v] > 1) print "0x" v ":" who[v] }' >"$work/found"
report "magics that are not unique:"

while IFS= read -r f; do
	n=$(wc -l <"$f")
	[ "$n" -le "$FILE_LINES_MAX" ] || echo "$f: $n lines"
done <"$work/c" >"$work/found"
report "files over $FILE_LINES_MAX lines:"

# Written apart, so that this file does not find itself.
folders="/wo""rk/|/ho""me/[a-z]|/tmp/""h/"
# Seeds are looked at, too; what autotools generate into a tarball may hold the builder's folder.
if [ "$tracked" = yes ]; then
	xargs grep -aHnE "(^|[^A-Za-z0-9_.\$}-])($folders)" <"$work/all" >"$work/found"
	report "names of somebody's working folders:"
fi

if ctags --version 2>/dev/null | grep -q 'Universal Ctags'; then
	ctags -x --language-force=C --kinds-C=f --fields=+e --_xformat='%F %n %{end} %N' \
		-L "$work/c" -f - |
		awk -v max="$FUNCTION_LINES_MAX" '$3 != "" && $3 - $2 + 1 > max {
			print $1 ":" $2 ": " $4 ": " $3 - $2 + 1 " lines" }' >"$work/found"
	report "functions over $FUNCTION_LINES_MAX lines:"
	skipped=0
else
	echo "universal-ctags is missing: the length of functions was not checked"
	skipped=77
fi

[ "$bad" -eq 0 ] || exit 1
exit "$skipped"
