/** Shells with a script. */
export const SHELLS = ["bash", "zsh", "fish"] as const;
export type Shell = (typeof SHELLS)[number];

/** Works in bash 3.2 too, which macOS has: file names are completed by readline where no words are offered. */
const bash = `_coppice() {
  local line files= cur="\${COMP_WORDS[COMP_CWORD]}"
  COMPREPLY=()
  [ "$cur" = "=" ] && cur=
  while IFS= read -r line; do
    if [ "$line" = ":files" ]; then files=1; else COMPREPLY+=("\${line%%$'\\t'*}"); fi
  done < <(coppice completion words -- "\${COMP_WORDS[@]:1:COMP_CWORD-1}" "$cur" 2>/dev/null)
  [ -n "$files" ] || compopt +o default 2>/dev/null
}
complete -o default -F _coppice coppice
`;

const zsh = `#compdef coppice
_coppice() {
  local line files
  local -a candidates
  while IFS= read -r line; do
    if [[ "$line" == ":files" ]]; then
      files=1
    else
      candidates+=("\${\${line%%$'\\t'*}//:/\\\\:}:\${line#*$'\\t'}")
    fi
  done < <(coppice completion words -- "\${(@)words[2,CURRENT]}" 2>/dev/null)
  (( \${#candidates} )) && _describe coppice candidates
  [[ -n "$files" ]] && _files
}
if (( $+functions[compdef] )); then compdef _coppice coppice; fi
`;

const fish = `function __coppice_complete
    set -l words (commandline -opc)
    set -l current (commandline -ct)
    for line in (coppice completion words -- $words[2..] "$current" 2>/dev/null)
        if test "$line" = ":files"
            __fish_complete_path "$current"
        else
            echo $line
        end
    end
end
complete -c coppice -f -a "(__coppice_complete)"
`;

/** Scripts that ask \`coppice completion words\` for candidates at each completion. */
export const SCRIPTS: Readonly<Record<Shell, string>> = { bash, zsh, fish };
