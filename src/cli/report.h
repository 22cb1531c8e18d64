/* The pages of `vkmoe experts report` and `vkmoe bench compare` as the build puts them into the program
 * (cmake/report.cmake), NUL behind each part. */
#ifndef CLI_REPORT_H
#define CLI_REPORT_H

extern const char cli_report_html[], cli_report_css[], cli_report_js[];
extern const char cli_compare_html[], cli_compare_css[];

#endif
