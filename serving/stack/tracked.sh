#!/bin/sh
# Copy a checkout's tracked files and its last commit into a new folder: tracked.sh CHECKOUT FOLDER
#
# Not copied: untracked files, history, git's configuration and logs (a remote's address may hold a token). A checkout
# without a commit (an archive, a git worktree in a build) has no tracked files. Then all files that .gitignore does not
# exclude are copied, with an empty repository, which DVC needs.
set -eu
checkout=$(cd "$1" && pwd) folder=$2

# In a build, another user owns the checkout.
GIT_CONFIG_GLOBAL=$(mktemp)
export GIT_CONFIG_GLOBAL
list=$GIT_CONFIG_GLOBAL.files
git config --file "$GIT_CONFIG_GLOBAL" safe.directory '*'
git config --file "$GIT_CONFIG_GLOBAL" init.defaultBranch main

git init --quiet "$folder"
folder=$(cd "$folder" && pwd)
if git -C "$checkout" rev-parse --quiet --verify 'HEAD^{commit}' >/dev/null 2>&1 \
    && git -C "$folder" fetch --quiet --depth 1 "file://$checkout" HEAD; then
    git -C "$folder" reset --quiet FETCH_HEAD
    git -C "$checkout" ls-files -z >"$list"
else
    git -C "$checkout" --git-dir "$folder/.git" --work-tree . ls-files -z --others --exclude-standard >"$list"
fi
rm -rf "$folder/.git/FETCH_HEAD" "$folder/.git/hooks" "$folder/.git/logs"
cd "$checkout"
# The list also names files that were deleted since the commit.
xargs -0 -r sh -c 'for file; do if [ -e "$file" ] || [ -L "$file" ]; then printf "%s\0" "$file"; fi; done' sh \
    <"$list" >"$list.there"
tar --null -cf - -T "$list.there" | tar -C "$folder" -xf -
rm -f "$list" "$list.there" "$GIT_CONFIG_GLOBAL"
